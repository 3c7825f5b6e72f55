use std::fs;
use std::io::Read as _;
use std::path::Path;

use serde_saphyr::{DuplicateKeyPolicy, Options};

use crate::overlay::Overlay as _;
use crate::{ConfigError, File};

/// The largest file that is read, in bytes: some 100,000 rules.
const MAX_FILE: u64 = 8 << 20;
/// What a variable's name begins with.
const PREFIX: &str = "ANYPROXY_";

impl File {
    /// Reads the file at `path`, or no file at all, and lays the variables of `environment` over it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] where the file cannot be read, is larger than 8 MiB, or says what cannot be.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut file = match path {
            None => Self::default(),
            Some(path) => {
                let name = path.display().to_string();
                let text = read(path).map_err(|error| ConfigError::new(&name, error.to_string()))?;
                Self::parse(&name, &text)?
            }
        };
        let mut environment: Vec<_> = environment.into_iter().filter(|(name, _)| is_variable(name)).collect();
        environment.sort();
        for (name, value) in environment {
            file.overlay(Self::variable(&name, &value)?);
        }
        Ok(file)
    }

    /// Reads `text`; `name` is what errors call it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the place of the first mistake.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str_with_options(text, options())
            .map_err(|error| ConfigError::from_yaml(name, &error))
    }

    /// `ANYPROXY_GATEWAY__LISTEN_ADDR=:8443` as the file it stands for.
    fn variable(name: &str, value: &str) -> Result<Self, ConfigError> {
        let path = name[PREFIX.len()..].to_ascii_lowercase();
        // A value is taken by the letter where that fits, so that a password needs no quotes; else it is YAML, so
        // that a list can be given.
        let quoted = quote(value);
        let as_text = Self::parse(name, &nest(&path, &quoted));
        let file = as_text.or_else(|_| Self::parse(name, &nest(&path, value)));
        let mut file = file.map_err(ConfigError::without_place)?;
        file.forget_places();
        Ok(file)
    }
}

/// Whether a variable of this name stands for a key of the file.
#[must_use]
pub fn is_variable(name: &str) -> bool {
    name.starts_with(PREFIX) && name.contains("__")
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("the file is larger than 8 MiB"));
    }
    Ok(text)
}

fn options() -> Options {
    let mut options = Options::default();
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    if let Some(budget) = &mut options.budget {
        // The size of the text is bounded already; these bound what a few aliases can make of it.
        budget.max_events = 8_000_000;
        budget.max_nodes = 8_000_000;
        budget.max_aliases = 1_000;
        budget.max_anchors = 1_000;
    }
    options.alias_limits.max_total_replayed_events = 100_000;
    options
}

/// `a__b` and `x` as the flow mapping `{a: {b: x}}`.
fn nest(path: &str, value: &str) -> String {
    path.rsplit("__").fold(value.to_owned(), |inner, key| format!("{{ {}: {inner} }}", quote(key)))
}

/// A YAML double-quoted scalar.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Whatever the bytes, reading them ends, with a file or with an error that can be shown.
pub fn fuzz(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = File::parse("fuzz", text) {
        let _ = error.to_string();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::Replicas;
    use crate::{ListenAddr, Place, Proxy};

    fn load(variables: &[(&str, &str)]) -> Result<File, ConfigError> {
        File::load(None, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn mistake(text: &str) -> String {
        File::parse("f.yaml", text).unwrap_err().to_string()
    }

    const DESIGN: &str = r#"
log:   { level: info, format: text, output: stdout }          # format: text | json
proxy:                                                        # omit a section, and that front is not started
  http:   { listen_addr: ":8080", auth_username: user, auth_password: password }
  socks5: { listen_addr: ":1080", auth_username: user, auth_password: password }
gateway:
  listen_addr: ":8443"
  tls_cert: certs/server.crt
  tls_key: certs/server.key
  auth_username: gateway_user
  auth_password: gateway_password
client:
  gateway_addr: "127.0.0.1:8443"                              # or a list
  gateway_tls_cert: certs/server.crt
  client_id: client-1
  replicas: 1
  auth_username: gateway_user
  auth_password: gateway_password
  forbidden_hosts: ["169.254.0.0/16", "*.internal:22"]
  allowed_hosts: [".*"]
  limit: [ { name: web, addr: "127.0.0.1:3000", protocol: tcp } ]
"#;

    const KEYS: &str = r#"
admin: { listen_addr: "127.0.0.1:9090" }
proxy:
  http:
    listen_addr: ":8080"
    users:
      - { username: alice, password: secret, group: blue }
      - { username: bob, password_hash: "$argon2id$v=19$...", group: green }
  mixed: { listen_addr: ":1081", users_file: users.htpasswd, group: blue }
  sni: { listen_addr: ":443", hosts: ["*.example.com"], group: blue, port: 443 }
gateway:
  clients:
    - { username: east, password: secret, groups: [blue], open_ports: ["2222", "8000-8010"] }
  access:
    default: allow
    rules:
      - { deny: ["10.0.0.0/8:22", "*.internal"], users: [alice] }
      - { allow: ["*.example.com:443"], groups: [blue], protocols: [tcp] }
  limits:
    max_connections: 10000
    per_user_connections: 200
    queue: { size: 1024, timeout: 5s }
    wait_for_client: 3s
    rate: { key: user, per_second: 100, burst: 200 }
    bandwidth: { key: user, up: 10MiB, down: 10MiB }
  routes:
    - { targets: ["*.lab", "10.7.0.0/16"], group: green }
  balance: { strategy: least_loaded, sticky_by: user, retries: 2 }
client:
  group_id: blue
  replicas: { min: 1, max: 8 }
  open_ports: [ { remote_port: 2222, local_host: 127.0.0.1, local_port: 22, protocol: tcp } ]
"#;

    #[test]
    fn the_files_of_the_manual_are_read_as_they_stand() {
        let file = File::parse("design.yaml", DESIGN).unwrap();
        assert_eq!(file.client.unwrap().forbidden_hosts.unwrap().len(), 2);
        let file = File::parse("keys.yaml", KEYS).unwrap();
        let rules = file.gateway.unwrap().access.unwrap().rules.unwrap();
        assert_eq!((rules[0].defined.line(), rules[1].defined.line()), (17, 18));
    }

    #[test]
    fn a_mistyped_key_is_told_with_its_place_and_a_suggestion() {
        assert_eq!(
            mistake("gateway:\n  listen_addr: ':1'\n  tls_crt: x\n"),
            "f.yaml:3:3: unknown key \"tls_crt\", did you mean \"tls_cert\"?"
        );
        assert!(
            mistake("gatway: {}\n")
                .starts_with("f.yaml:1:1: unknown key \"gatway\", did you mean \"gateway\"?")
        );
    }

    #[test]
    fn a_key_with_nothing_behind_it_is_a_mistake_and_does_not_count_as_absent() {
        let nothing = "a key without a value: give one, or leave the key out";
        for (text, place) in [
            ("gateway:\n  access:\n    rules:\n      - allow: [10.0.0.0/8]\n        users:\n", "5:14"),
            ("client:\n  limit:\n  client_id: a\n", "2:8"),
            ("gateway:\n  tls_client_ca: ~\n", "2:18"),
            ("proxy:\n  http:\n    users_file: null\n", "3:17"),
            ("proxy:\n  http:\n  socks5: { listen_addr: ':1' }\n", "2:7"),
            ("client: { replicas: { min: , max: 2 } }\n", "1:26"),
        ] {
            assert_eq!(mistake(text), format!("f.yaml:{place}: {nothing}"), "{text}");
        }
        let error = load(&[("ANYPROXY_CLIENT__LIMIT", "")]).unwrap_err();
        assert_eq!(error.to_string(), format!("ANYPROXY_CLIENT__LIMIT: {nothing}"));
    }

    #[test]
    fn a_wrong_value_is_told_with_its_place() {
        assert_eq!(
            mistake("gateway:\n  ping_interval: 5\n"),
            "f.yaml:2:18: \"5\" is not a duration, as in 50us, 500ms, 5s, 10m or 1h"
        );
        assert_eq!(mistake("log: { level: loud }\n").split(':').next(), Some("f.yaml"));
        let place = File::parse("f", "client:\n  forbidden_hosts: [ '10.0.0.0/40' ]\n").unwrap_err().place();
        assert_eq!(place, Some(Place { line: 2, column: 22 }));
    }

    #[test]
    fn what_yaml_takes_for_something_else_is_told_in_our_words() {
        let second = mistake("log: { level: info }\n---\nlog: { level: warn }\n");
        assert!(second.contains("a second document begins here"), "{second}");
        let star = mistake("gateway:\n  allowed_hosts: [*.example.com]\n");
        assert!(star.contains("is to be quoted"), "{star}");
    }

    #[test]
    fn replicas_are_a_number_or_a_range() {
        let replicas = |value: &str| {
            let file = File::parse("f", &format!("client: {{ replicas: {value} }}\n"));
            file.map(|file| file.client.unwrap().replicas.map(|Replicas { min, max }| (min, max)))
        };
        assert_eq!(replicas("3").unwrap(), Some((Some(3), Some(3))));
        assert_eq!(replicas("{ min: 2, max: 8 }").unwrap(), Some((Some(2), Some(8))));
        assert_eq!(replicas("{ max: 8 }").unwrap(), Some((None, Some(8))));
        for bad in ["{ most: 8, max: 8 }", "{ max: -1 }", "-1", "65536", "many", "[1, 8]"] {
            let error = replicas(bad).unwrap_err().to_string();
            assert!(error.starts_with("f:1:"), "{bad}: {error}");
        }
    }

    #[test]
    fn one_end_of_a_range_of_replicas_may_be_laid_over_the_file_s() {
        let replicas = |variable: &str, value: &str| {
            let mut file = File::parse("f", "client: { replicas: { min: 2, max: 8 } }").unwrap();
            file.overlay(load(&[(variable, value)]).unwrap());
            file.client.unwrap().replicas.map(|Replicas { min, max }| (min, max))
        };
        assert_eq!(replicas("ANYPROXY_CLIENT__REPLICAS__MAX", "9"), Some((Some(2), Some(9))));
        assert_eq!(replicas("ANYPROXY_CLIENT__REPLICAS__MIN", "4"), Some((Some(4), Some(8))));
        assert_eq!(
            replicas("ANYPROXY_CLIENT__REPLICAS", "5"),
            Some((Some(5), Some(5))),
            "a number says both"
        );
    }

    #[test]
    fn a_key_that_stands_twice_is_a_mistake() {
        assert!(mistake("log: { level: info, level: warn }\n").contains("twice"));
    }

    #[test]
    fn o2_a_password_is_in_no_error() {
        for text in [
            "proxy: { http: { auth_password: { canary: canary } } }",
            "proxy: { http: { auth_password: [canary] } }",
            "proxy: { http: { users: canary } }",
            "proxy: { http: canary }",
        ] {
            assert!(!mistake(text).contains("canary"), "{}", mistake(text));
        }
        let file = File::parse("f", "proxy: { http: { auth_password: canary } }").unwrap();
        assert!(!format!("{file:?}").contains("canary"));
    }

    #[test]
    fn a_hundred_thousand_rules_are_read() {
        let mut text = String::from("gateway:\n  access:\n    rules:\n");
        for rule in 0..100_000 {
            text.push_str(&format!("      - {{ deny: [\"*.zone-{rule}.example:443\"] }}\n"));
        }
        let file = File::parse("rules.yaml", &text).unwrap();
        assert_eq!(file.gateway.unwrap().access.unwrap().rules.unwrap().len(), 100_000);
    }

    #[test]
    fn r1_alias_bombs_are_refused() {
        let mut text = String::from("log: { level: &a0 [x, x] }\n");
        for level in 1..40 {
            text.push_str(&format!("k{level}: &a{level} [*a{}, *a{}]\n", level - 1, level - 1));
        }
        assert!(File::parse("bomb", &text).is_err());
    }

    #[test]
    fn variables_win_over_the_file_and_leave_the_rest() {
        let file = load(&[
            ("ANYPROXY_GATEWAY__LISTEN_ADDR", "127.0.0.1:9443"),
            ("ANYPROXY_GATEWAY__LIMITS__MAX_CONNECTIONS", "7"),
            ("ANYPROXY_GATEWAY__AUTH_PASSWORD", "{p: \"ä#"),
            ("ANYPROXY_CLIENT__FORBIDDEN_HOSTS", "[10.0.0.0/8, '*.lab']"),
            ("ANYPROXY_PROXY__HTTP__ALLOW_ANONYMOUS", "true"),
            ("ANYPROXY_SERVICE_HOST", "10.1.2.3"),
        ])
        .unwrap();
        let gateway = file.gateway.unwrap();
        let address: SocketAddr = "127.0.0.1:9443".parse().unwrap();
        assert_eq!(gateway.listen_addr.unwrap().value, ListenAddr::This(address));
        assert_eq!(gateway.limits.unwrap().max_connections, Some(7));
        assert_eq!(gateway.auth_password.unwrap().0.expose_secret(), "{p: \"ä#");
        assert_eq!(file.client.unwrap().forbidden_hosts.unwrap().len(), 2);
        assert_eq!(file.proxy.unwrap().http.unwrap().value.allow_anonymous, Some(true));
    }

    #[test]
    fn a_variable_for_a_front_leaves_the_front_s_other_keys() {
        let mut file = File::parse("f", DESIGN).unwrap();
        file.overlay(File::variable("ANYPROXY_PROXY__HTTP__LISTEN_ADDR", ":1").unwrap());
        let http = file.proxy.unwrap().http.unwrap().value;
        assert_eq!(http.listen_addr.unwrap().value, ListenAddr::All(1));
        assert_eq!(http.auth_username.as_deref(), Some("user"));
    }

    #[test]
    fn a_variable_for_an_unknown_key_is_a_mistake() {
        let error = load(&[("ANYPROXY_GATEWAY__LISTN_ADDR", ":1")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ANYPROXY_GATEWAY__LISTN_ADDR: unknown key \"listn_addr\", did you mean \"listen_addr\"?"
        );
    }

    #[test]
    fn what_a_variable_says_has_no_place_in_the_file() {
        let mut file = File::parse("f", "proxy:\n  http: { listen_addr: ':1' }\n").unwrap();
        file.overlay(
            load(&[
                ("ANYPROXY_PROXY__HTTP__LISTEN_ADDR", ":2"),
                ("ANYPROXY_PROXY__SOCKS5__USERS", "[{ username: a }]"),
                ("ANYPROXY_GATEWAY__ACCESS__RULES", "[{ deny: ['*.lab'] }]"),
                ("ANYPROXY_CLIENT__FORBIDDEN_HOSTS", "['*.lab']"),
            ])
            .unwrap(),
        );
        let File { proxy, gateway, client, .. } = file;
        let Proxy { http, socks5, .. } = proxy.unwrap();
        let (http, socks5) = (http.unwrap(), socks5.unwrap());
        assert_eq!(http.defined.line(), 2, "the section stands in the file");
        let rules = gateway.unwrap().access.unwrap().rules.unwrap();
        for place in [
            http.value.listen_addr.unwrap().defined,
            socks5.defined,
            socks5.value.users.unwrap()[0].defined,
            rules[0].defined,
            rules[0].value.deny.as_ref().unwrap()[0].defined,
            client.unwrap().forbidden_hosts.unwrap()[0].defined,
        ] {
            assert_eq!(Place::from(place), Place::default());
        }
    }

    #[test]
    fn a_file_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big.yaml");
        fs::write(&path, vec![b'#'; MAX_FILE as usize + 1]).unwrap();
        assert!(File::load(Some(&path), []).unwrap_err().to_string().contains("8 MiB"));
    }
}
