//! What commands print to standard output: one function, because `print!` ends the program with a panic when the reader
//! went away. What is wrong or under way goes to standard error, and not through here.

use std::io::Write;

/// Prints `text` as it is; a reader that went away, like `head`, has read what it wanted, and the work goes on.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// [`print`] with the arguments of `format!`, and the end of the line.
macro_rules! print_line {
    ($($arguments:tt)*) => {
        $crate::output::print(&format!("{}\n", format_args!($($arguments)*)))
    };
}
pub(crate) use print_line;
