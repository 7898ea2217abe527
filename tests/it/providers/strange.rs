//! Providers that say less than others, answers of others, and addresses of ours that somebody else would like to choose.

use super::*;

on_both_databases!(
    a_provider_that_never_says_is_believed_about_its_own_domains,
    addresses_of_ours_are_made_of_nothing_that_a_stranger_says,
    an_answer_of_another_provider_is_refused,
    what_is_said_of_no_address_does_not_count,
    a_connection_is_asked_for_by_our_own_page,
    of_two_ways_in_one_stays,
    groups_do_not_take_the_last_owner_away,
    each_cookie_is_for_this_server_and_for_no_script,
    tokens_that_are_made_up_have_keys_fetched_seldom,
);

/// Microsoft Entra says of no address whether it is verified. An operator may say so, domain by domain.
async fn a_provider_that_never_says_is_believed_about_its_own_domains(database: Database) {
    let provider = Provider::start().await;
    let more = [("OPEN_SPANNER_OIDC_VERIFIED_DOMAINS", "example.com, Example.ORG")];
    let server = start(&database, &provider, &more);
    let silent = json!({"email_verified": null});
    // what it does say counts, and so does every other domain as before
    let unsaid = |email: &str, said: Value| (email.to_owned(), said);
    for (email, change) in [
        unsaid("ann@other.example", silent.clone()),
        unsaid("ann@sub.example.com", silent.clone()),
        unsaid("ann@example.com.evil.example", silent.clone()),
        unsaid("ann@evil.example,b@example.com", silent.clone()),
        unsaid("example.com", silent.clone()),
        unsaid("ann@example.com", json!({"email_verified": false})),
        unsaid("ann@example.com", json!({"email_verified": "false"})),
    ] {
        let said = is_out(&through(&server, &provider, &email, &change).await);
        assert!(said.contains("has not verified your address"), "{email}: {said}");
        assert_eq!(database.count("users") + database.count("identities"), 0, "{email}");
    }
    let ann = is_in(&server, &through(&server, &provider, "Ann@Example.com", &silent).await);
    assert_eq!(ann.get(SESSION).await.json(200)["user"]["email"], json!("ann@example.com"));
    is_in(&server, &through(&server, &provider, "bob@example.org", &silent).await);
    // an account that anybody may have made is not opened by it
    let email = format!("{}@example.com", unique("eve"));
    let body = json!({"email": email, "password": PASSWORD});
    server.client().post("/v1/auth/users", &body).await.expect(201);
    assert!(is_out(&through(&server, &provider, &email, &silent).await).contains("with its password"));
    // but connected by its owner, who is signed in
    let eve = sign_in(&server.client(), &email).await;
    let gone = go(&eve, "/v1/auth/oauth/oidc?link=1").await;
    provider.next(Signing::Own, changed(claims(&provider, &gone, &email), &silent), &gone.challenge);
    let said = come_back_as(&eve, &gone).await.cookie("open_spanner_flash").unwrap_or_default();
    assert!(said.contains("connected"), "{said}");
    is_in(&server, &through(&server, &provider, &email, &silent).await);
    drop(server);
    // another setting that is no domain is refused at the start
    for bad in ["*", "*.example.com", "@example.com", "example..com"] {
        let own = database.settings();
        let mut all: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let oidc = settings(&provider);
        all.extend(oidc.iter().map(|(name, value)| (*name, value.as_str())));
        all.push(("OPEN_SPANNER_OIDC_VERIFIED_DOMAINS", bad));
        let folder = tempfile::tempdir().expect("a directory");
        let refused = program::run(&["serve"], &all, folder.path());
        assert!(refused.code == Some(2) && refused.stderr.contains("OIDC_VERIFIED_DOMAINS"), "{refused:#?}");
    }
}

/// Where an absolute address of ours is shown or sent: the way back from a provider, a link for customers (over the wire and
/// on its page), an invitation, the calls that pages show. Mails are in `mail`.
async fn addresses_of_ours_are_made_of_nothing_that_a_stranger_says(database: Database) {
    let provider = Provider::start().await;
    const PUBLIC: &str = "https://usage.example.com";
    let public = [("OPEN_SPANNER_PUBLIC_URL", PUBLIC)];
    let proxied = [("OPEN_SPANNER_TRUSTED_PROXIES", "127.0.0.0/8")];
    // who is told what: settings, headers, and what addresses then begin with; none: where the call came to
    let strange =
        [("host", "evil.example"), ("x-forwarded-host", "evil.example"), ("x-forwarded-proto", "https")];
    let forwarded = [("x-forwarded-host", "evil.example"), ("x-forwarded-proto", "https")];
    let appended = [("x-forwarded-host", "evil.example, front.example.com")];
    let broken = [("x-forwarded-host", "ann@evil.example/x?")];
    type Headers<'a> = &'a [(&'static str, &'static str)];
    let cases: [(Headers, Headers, Option<&str>); 6] = [
        (&public, &strange, Some(PUBLIC)),
        (&[public[0], proxied[0]], &strange, Some(PUBLIC)),
        (&[], &forwarded, None),
        (&proxied, &forwarded, Some("https://evil.example")),
        (&proxied, &appended, Some("http://front.example.com")),
        (&proxied, &broken, None),
    ];
    for (settings, headers, wanted) in cases {
        let server = start(&database, &provider, settings);
        let wanted = wanted.map_or_else(|| server.url(), str::to_owned);
        let ws = server.workspace().await;
        let said = |client: &Client| {
            headers.iter().fold(client.clone(), |client, (name, value)| client.with(name, *value))
        };
        let (session, key) = (said(&ws.session), said(&ws.key));
        let gone = go(&said(&server.client()), "/v1/auth/oauth/oidc").await;
        assert_eq!(gone.redirect_uri, format!("{wanted}/v1/auth/oauth/oidc/callback"));
        let asked = "/v1/auth/oauth/oidc?redirect_origin=https%3A%2F%2Fevil2.example";
        let gone = go(&said(&server.client()), asked).await;
        assert_eq!(
            gone.redirect_uri,
            format!("{wanted}/v1/auth/oauth/oidc/callback"),
            "nobody may ask for it"
        );
        let link = key.post("/v1/subjects/s/links", &json!({})).await.json(201);
        let url = link["url"].as_str().expect("an address");
        assert!(url.starts_with(&format!("{wanted}/share/")), "{url}");
        for path in ["/meters", "/welcome"] {
            let page = session.get(path).await.expect(200).text;
            assert!(wanted.contains("evil") || !page.contains("evil.example"), "{path}");
        }
        let token = crate::dashboard::token_of(&session.get("/members").await.text);
        let form = format!("form_token={token}&email={}%40example.com&role=viewer", unique("x"));
        let page = session.with("sec-fetch-site", "same-origin");
        let made = page.send_form(reqwest::Method::POST, "/members/invite", Some(form)).await.expect(303);
        let shown = made.cookie("open_spanner_shown").expect("what is to be shown");
        let cookies = format!("{}; open_spanner_shown={shown}", session.header("cookie"));
        let page = session.without("cookie").with("cookie", cookies).get(&made.header("location")).await;
        assert!(page.text.contains(&format!("{wanted}/invitations/")), "{} {}", page.status, page.text);
    }
}

/// Two providers are mixed up: somebody sends a browser back with what another one gave out.
async fn an_answer_of_another_provider_is_refused(database: Database) {
    let provider = Provider::start().await;
    provider.says_who();
    let google =
        [("OPEN_SPANNER_GOOGLE_OAUTH_CLIENT_ID", "gid"), ("OPEN_SPANNER_GOOGLE_OAUTH_CLIENT_SECRET", "s")];
    let server = start(&database, &provider, &google);
    let client = server.client();
    let own = format!(
        "&iss={}",
        percent_encoding::utf8_percent_encode(&provider.url, percent_encoding::NON_ALPHANUMERIC)
    );
    for (path, says) in [
        ("oidc", ""),
        ("oidc", "&iss=https%3A%2F%2Faccounts.google.com"),
        ("oidc", "&iss="),
        ("google", own.as_str()),
        ("google", ""),
    ] {
        let gone = go(&client, "/v1/auth/oauth/oidc").await;
        provider.next(Signing::Own, claims(&provider, &gone, "ann@example.com"), &gone.challenge);
        let back = client.with("cookie", gone.cookie.clone());
        let callback = format!("/v1/auth/oauth/{path}/callback?code=c&state={}{says}", gone.state);
        is_out(&back.get(&callback).await.expect(302));
        // nobody was asked for a token with a code that is another's
        assert_eq!((provider.calls("/token"), database.count("users")), (0, 0), "{path} {says}");
    }
    let gone = go(&client, "/v1/auth/oauth/oidc").await;
    provider.next(Signing::Own, claims(&provider, &gone, "ann@example.com"), &gone.challenge);
    let back = client.with("cookie", gone.cookie.clone());
    let callback = format!("/v1/auth/oauth/oidc/callback?code=c&state={}{own}", gone.state);
    is_in(&server, &back.get(&callback).await.expect(302));
}

/// The token says that an address is verified and names none; the one that userinfo names is not.
async fn what_is_said_of_no_address_does_not_count(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    for said in [json!(false), Value::Null] {
        provider
            .userinfo(json!({"sub": "ann@example.com", "email": "ann@example.com", "email_verified": said}));
        let said = is_out(&through(&server, &provider, "ann@example.com", &json!({"email": null})).await);
        assert!(said.contains("has not verified your address"), "{said}");
        assert_eq!(database.count("users"), 0);
    }
}

/// Another site, a mail or an old browser that does not say where it comes from begins no connection for somebody who is signed
/// in: it could be with an account of the provider that is a stranger's.
async fn a_connection_is_asked_for_by_our_own_page(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    let email = sign_up(&server.client()).await;
    let browser = sign_in(&server.client(), &email).await.with("user-agent", "Mozilla/5.0 (X11; Linux)");
    let path = "/v1/auth/oauth/oidc?link=1&next=/settings/sessions";
    let (own, evil) = (format!("{}/settings/sessions", server.url()), "https://evil.example/".to_owned());
    let with = |headers: &[(&'static str, &str)]| {
        headers.iter().fold(browser.clone(), |client, (name, value)| client.with(name, *value))
    };
    for headers in [
        [("sec-fetch-site", "cross-site"), ("referer", own.as_str())],
        [("sec-fetch-site", "same-site"), ("referer", own.as_str())],
        [("sec-fetch-site", "none"), ("accept", "text/html")],
        [("referer", evil.as_str()), ("accept", "text/html")],
        [("referer", "nothing"), ("accept", "text/html")],
        [("accept-language", "en"), ("accept", "text/html")],
    ] {
        with(&headers).get(path).await.error(403, "forbidden");
    }
    assert_eq!(database.count("provider_flows"), 0);
    go(&with(&[("sec-fetch-site", "same-origin")]), path).await;
    go(&with(&[("referer", own.as_str())]), path).await;
}

/// Both are disconnected at once by somebody who has no password.
async fn of_two_ways_in_one_stays(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    let ann = is_in(&server, &through(&server, &provider, "ann@example.com", &json!({})).await);
    for round in 0..10 {
        database.execute("DELETE FROM identities");
        for n in [1, 2] {
            database.execute(&format!(
                "INSERT INTO identities (id, public_id, user_id, provider, issuer, subject, email, created_at)
                 SELECT {n}, 'way-{n}', id, 'oidc', 'i', '{round}-{n}', email, 1 FROM users"
            ));
        }
        let (one, two) =
            tokio::join!(ann.delete("/v1/auth/identities/way-1"), ann.delete("/v1/auth/identities/way-2"));
        let mut statuses = [one.status, two.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [204, 409]);
        assert_eq!(database.count("identities"), 1);
    }
}

/// Whatever their groups say, somebody goes on deciding about members.
async fn groups_do_not_take_the_last_owner_away(database: Database) {
    let provider = Provider::start().await;
    let mut server = start(&database, &provider, &[]);
    let email = sign_up(&server.client()).await;
    let boss = sign_in(&server.client(), &email).await;
    let workspace = boss.get(SESSION).await.json(200)["user"]["workspace_id"].clone();
    let workspace = workspace.as_str().expect("an id").to_owned();
    server.terminate();
    database.execute(&format!(
        "INSERT INTO identities (id, public_id, user_id, provider, issuer, subject, email, created_at)
         SELECT 1, 'boss', id, 'oidc', '{}', 'boss', email, 1 FROM users",
        provider.url
    ));
    let more = [
        ("OPEN_SPANNER_OIDC_WORKSPACE", workspace.as_str()),
        ("OPEN_SPANNER_OIDC_ROLES", "owners=owner,staff=viewer"),
    ];
    let server = start(&database, &provider, &more);
    let role_with = async |who: &str, groups: Value| {
        let answer = through(&server, &provider, who, &json!({"groups": groups})).await;
        is_in(&server, &answer).get(SESSION).await.json(200)["user"].clone()
    };
    provider.userinfo(json!({"sub": "boss"}));
    for groups in [json!(["staff"]), json!([])] {
        role_with("boss", groups).await;
        let roles = "SELECT role AS line FROM memberships";
        assert_eq!(database.lines(roles), ["owner"]);
    }
    // nor while the other owner is disabled
    provider.userinfo(json!({"sub": "ann@example.com"}));
    let ann = role_with("ann@example.com", json!(["owners"])).await;
    assert_eq!((&ann["workspace_id"], &ann["role"]), (&json!(workspace), &json!("owner")));
    provider.userinfo(json!({"sub": "boss"}));
    database.execute("UPDATE users SET disabled_at = 1 WHERE email = 'ann@example.com'");
    assert_eq!(role_with("boss", json!(["staff"])).await["role"], json!("owner"));
    database.execute("UPDATE users SET disabled_at = NULL");
    assert_eq!(role_with("boss", json!(["staff"])).await["role"], json!("viewer"));
}

/// Every cookie that there is, set and taken back, where the browser came over https.
async fn each_cookie_is_for_this_server_and_for_no_script(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[("OPEN_SPANNER_TRUSTED_PROXIES", "127.0.0.0/8")]);
    let client = server.client().with("x-forwarded-proto", "https").with("sec-fetch-site", "same-origin");
    let email = sign_up(&client).await;
    let post = async |client: &Client, path: &str, form: String| {
        client.send_form(reqwest::Method::POST, path, Some(form)).await.expect(303)
    };
    let form = format!("email={}&password={}", email.replace('@', "%40"), PASSWORD.replace(' ', "+"));
    let signed_in = post(&client, "/login", form).await;
    let session = jar(&client, &signed_in);
    let token = crate::dashboard::token_of(&session.get("/settings").await.expect(200).text);
    let body = json!({"email": email, "password": PASSWORD});
    let mut answers = vec![signed_in, client.post("/v1/auth/sessions", &body).await.expect(201)];
    answers.push(client.get("/v1/auth/oauth/oidc").await.expect(302));
    answers.push(client.get("/v1/auth/oauth/oidc/callback?error=x").await.expect(302));
    for (path, fields) in [
        ("/settings/theme", "theme=dark"),
        ("/settings/zone", "zone=UTC"),
        ("/settings/keys", "keys=off"),
        ("/api-keys/new", "name=k&preset=ingest&days=7"),
        ("/logout", "x=y"),
    ] {
        answers.push(post(&session, path, format!("form_token={token}&{fields}")).await);
    }
    let mut names = std::collections::BTreeSet::new();
    for answer in &answers {
        for line in answer.headers.get_all("set-cookie") {
            let line = line.to_str().expect("a cookie is ASCII");
            for word in ["; HttpOnly", "; Secure", "; SameSite=Lax", "; Path=/"] {
                assert!(line.contains(word), "{}: {line}", answer.request);
            }
            assert!(!line.contains("Domain"), "{}: {line}", answer.request);
            names.insert(line.split('=').next().unwrap_or_default().to_owned());
        }
    }
    let known = [
        "access",
        "device",
        "flash",
        "keys",
        "oauth_redirect",
        "oauth_state",
        "refresh",
        "shown",
        "theme",
        "zone",
    ];
    let known = known.map(|name| format!("open_spanner_{name}"));
    assert_eq!(names.into_iter().collect::<Vec<_>>(), known);
}

/// Whoever brings tokens that no known key has signed does not have the provider asked for each of them.
async fn tokens_that_are_made_up_have_keys_fetched_seldom(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    is_in(&server, &through(&server, &provider, "ann@example.com", &json!({})).await);
    let began = std::time::Instant::now();
    for _ in 0..20 {
        let gone = go(&server.client(), "/v1/auth/oauth/oidc").await;
        provider.next(Signing::Foreign, claims(&provider, &gone, "bob@example.com"), &gone.challenge);
        is_out(&come_back(&server.client(), &gone).await);
    }
    // once when they were needed first, and then once a second at most
    let (fetched, seconds) = (provider.calls("/jwks"), began.elapsed().as_secs() as usize);
    assert!(fetched <= 2 + seconds, "{fetched} times in {seconds} s");
    assert_eq!(database.count("users"), 1);
    // and whoever comes then with a good one is let in
    is_in(&server, &through(&server, &provider, "bob@example.com", &json!({})).await);
}
