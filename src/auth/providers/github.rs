//! GitHub, and GitHub Enterprise: no OpenID Connect, so who signed in is asked of its interface. Only addresses that GitHub
//! has verified count.

use crate::auth::providers::caller::{Caller, failed};
use crate::auth::providers::{Flow, Profile, Registration};
use crate::error::Result;
use crate::metering::json::Value;

pub const SCOPES: &str = "read:user user:email";

pub struct GitHub {
    url: String,
    api: String,
    caller: Caller,
}

impl GitHub {
    pub fn new(url: &str, caller: Caller) -> GitHub {
        let api = match url {
            "https://github.com" => "https://api.github.com".to_owned(),
            enterprise => format!("{enterprise}/api/v3"),
        };
        GitHub { url: url.to_owned(), api, caller }
    }

    pub fn name(&self) -> &str {
        &self.url
    }

    pub fn authorize_url(&self) -> String {
        format!("{}/login/oauth/authorize", self.url)
    }

    pub async fn profile(&self, own: &Registration, code: &str, flow: &Flow) -> Result<Profile> {
        let secret = own.client_secret.as_ref().map_or("", |secret| secret.expose());
        let form = [
            ("client_id", own.client_id.as_str()),
            ("client_secret", secret),
            ("code", code),
            ("redirect_uri", &flow.redirect_url),
            ("code_verifier", &flow.verifier),
        ];
        let url = format!("{}/login/oauth/access_token", self.url);
        let answer = self.caller.json(self.caller.post(&url, &form)?).await?;
        let token = field(&answer, "access_token").and_then(Value::as_str);
        // refusals of GitHub come with 200
        let token = token.ok_or_else(|| failed("GitHub gave no access token for the code"))?;
        let user = self.ask("/user", token).await?;
        let id = match field(&user, "id") {
            Some(Value::Number(id)) if id.as_str() != "0" => id.as_str().to_owned(),
            _ => return Err(failed("GitHub names nobody")),
        };
        let addresses = self.ask("/user/emails", token).await?;
        let email = best_address(&addresses);
        Ok(Profile {
            issuer: self.url.clone(),
            subject: id,
            email_verified: email.is_some(),
            email: email.unwrap_or_default(),
            groups: None,
        })
    }

    async fn ask(&self, path: &str, token: &str) -> Result<Value> {
        let request = self.caller.get(&format!("{}{path}", self.api))?.bearer_auth(token);
        self.caller.json(request.header("accept", "application/vnd.github+json")).await
    }
}

fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.as_object()?.get(name)
}

/// The primary address, else any other; verified ones only.
fn best_address(addresses: &Value) -> Option<String> {
    let is = |address: &&Value, flag: &str| field(address, flag).and_then(Value::as_bool) == Some(true);
    let verified =
        || addresses.as_array().unwrap_or_default().iter().filter(|address| is(address, "verified"));
    let best = verified().find(|address| is(address, "primary")).or_else(|| verified().next())?;
    field(best, "email").and_then(Value::as_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verified_addresses_count() {
        let best = |text: &str| best_address(&Value::parse(text).expect("JSON"));
        let both = r#"[{"email":"b@x","verified":true,"primary":false},{"email":"a@x","verified":true,"primary":true}]"#;
        assert_eq!(best(both).as_deref(), Some("a@x"));
        let primary_is_not =
            r#"[{"email":"a@x","verified":false,"primary":true},{"email":"b@x","verified":true}]"#;
        assert_eq!(best(primary_is_not).as_deref(), Some("b@x"));
        assert_eq!(best(r#"[{"email":"a@x","verified":false,"primary":true}]"#), None);
        assert_eq!(best("{}"), None);
    }
}
