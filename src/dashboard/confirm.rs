//! The page that stands before what cannot be undone: what hangs on it, in numbers, and the form that does it. The page
//! itself changes nothing; what it says is true at the moment it is shown, and the route of the form decides.

use askama::Template;

use crate::dashboard::form::Complaint;
use crate::dashboard::view;
use crate::dashboard::visit::Shell;

/// Things that use another, named at most.
const USES_NAMED: usize = 10;
/// Up to so many, things are counted for such a page.
pub const COUNTED_MAX: i64 = 10_000;

/// Words, and where they lead.
pub type Named = (String, String);

/// Something that is chosen with the act.
pub struct Choice {
    pub name: &'static str,
    pub label: String,
    /// Value and words.
    pub options: [(&'static str, &'static str); 2],
}

#[derive(Template)]
#[template(path = "confirm.html")]
pub struct Confirm {
    pub shell: Shell,
    /// Where this stands, from the list down. Cancel leads to the last of them.
    pub crumbs: Vec<Named>,
    pub sentences: Vec<String>,
    /// What uses the thing.
    pub uses: Vec<Named>,
    /// Where the form is sent.
    pub action: String,
    pub fields: Vec<(&'static str, String)>,
    pub choice: Option<Choice>,
    /// Empty when it cannot be done now, as the sentences say.
    pub button: String,
    /// Nothing is lost by it.
    pub is_harmless: bool,
    pub complaint: Complaint,
}

impl Confirm {
    /// A page with nothing to say yet.
    pub fn below<W: Into<String>, A: Into<String>>(
        shell: Shell,
        crumbs: impl IntoIterator<Item = (W, A)>,
    ) -> Confirm {
        Confirm {
            shell,
            crumbs: crumbs.into_iter().map(|(words, address)| (words.into(), address.into())).collect(),
            sentences: Vec::new(),
            uses: Vec::new(),
            action: String::new(),
            fields: Vec::new(),
            choice: None,
            button: String::new(),
            is_harmless: false,
            complaint: Complaint::none(),
        }
    }

    fn back(&self) -> &str {
        self.crumbs.last().map_or("/overview", |(_, address)| address)
    }

    fn named(&self) -> impl Iterator<Item = &Named> {
        self.uses.iter().take(USES_NAMED)
    }

    /// How many more there are than are named.
    fn more(&self) -> usize {
        self.uses.len().saturating_sub(USES_NAMED)
    }
}
