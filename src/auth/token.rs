//! Opaque secrets: made here, shown once, kept as SHA-256 only. Equality is asked of the database by hash, so no
//! comparison ever runs over a secret itself. Nothing here is printable.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;

use crate::chance;
use crate::error::Result;

pub const ACCESS_PREFIX: &str = "osp_at_";
pub const REFRESH_PREFIX: &str = "osp_rt_";
pub const KEY_PREFIX: &str = "osp_sk_";
pub const RESET_PREFIX: &str = "osp_rst_";
pub const DEVICE_PREFIX: &str = "osp_dev_";
pub const LINK_PREFIX: &str = "osp_share_";
pub const INVITATION_PREFIX: &str = "osp_wsi_";

const RANDOM_BYTES: usize = 32;

/// SHA-256 of the whole text of a token: what the database and the caches know it by.
pub type TokenHash = [u8; digest::SHA256_OUTPUT_LEN];

/// A fresh secret: the prefix and 43 random characters.
pub struct Token(String);

impl Token {
    pub fn new(prefix: &str) -> Result<Token> {
        let random = chance::secret::<RANDOM_BYTES>()?;
        Ok(Token(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random))))
    }

    /// The secret itself, for the one answer that shows it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn hash(&self) -> TokenHash {
        hash(&self.0)
    }
}

pub fn hash(text: &str) -> TokenHash {
    let mut hash = TokenHash::default();
    hash.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_different() {
        let (one, two) = (Token::new(KEY_PREFIX).expect("token"), Token::new(KEY_PREFIX).expect("token"));
        assert_eq!(one.expose().len(), 50);
        assert!(one.expose().starts_with("osp_sk_"));
        assert_ne!(one.expose(), two.expose());
        assert_ne!(one.hash(), two.hash());
        assert_eq!(one.hash(), hash(one.expose()));
    }
}
