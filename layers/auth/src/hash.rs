use std::error::Error;
use std::fmt;
use std::sync::Arc;

use anyproxy_core::Secret;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::rand;

/// The least memory of an argon2id hash, in KiB: what the `argon2` program takes when it is told nothing.
const MIN_ARGON2_MEMORY: u32 = 4 * 1024;
/// The most memory of an argon2id hash, in KiB. Whoever can write a hash into the file may spend this much for each
/// hash that runs at once, and no more.
const MAX_ARGON2_MEMORY: u32 = 256 * 1024;
/// The most work of an argon2id hash, in KiB × passes: about two seconds of one core.
const MAX_ARGON2_WORK: u64 = 1024 * 1024;
/// The most lanes. They run one after another here, so they cost nothing but must divide the memory.
const MAX_ARGON2_LANES: u32 = 64;
/// The shortest argon2id output, in bytes: shorter ones are guessed.
const MIN_ARGON2_OUTPUT: usize = 16;
/// The shortest argon2id salt, in bytes (RFC 9106 section 3.1 recommends 16, the format allows 8).
const MIN_ARGON2_SALT: usize = 8;
/// The least bcrypt cost: what `htpasswd -B` takes when it is told nothing.
const MIN_BCRYPT_COST: u32 = 5;
/// The greatest bcrypt cost: about two seconds of one core; each step doubles it.
const MAX_BCRYPT_COST: u32 = 15;

/// The hash of a password: argon2id, or bcrypt as `htpasswd -B` writes it.
///
/// Cheap to clone, and never shown. bcrypt looks at the first 72 bytes of a password only; argon2id at all of it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    text: Arc<str>,
    scheme: Scheme,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Argon2id,
    Bcrypt,
}

impl PasswordHash {
    /// Reads a hash: `$argon2id$v=19$m=…,t=…,p=…$salt$output` or `$2y$cost$…` (also `$2a$`, `$2b$`).
    ///
    /// The costs written in a hash are spent at each login, so they are bounded: argon2id from 4 MiB to 256 MiB of
    /// memory, memory × passes up to 1 GiB, up to 64 lanes; bcrypt cost 5 to 15.
    ///
    /// # Errors
    ///
    /// [`InvalidHash`] for weak or unknown forms, broken text, and costs out of bounds.
    pub fn parse(text: &str) -> Result<Self, InvalidHash> {
        let scheme = if text.starts_with("$argon2id$") {
            check_argon2id(text)?;
            Scheme::Argon2id
        } else if ["$2y$", "$2b$", "$2a$"].iter().any(|prefix| text.starts_with(prefix)) {
            check_bcrypt(text)?;
            Scheme::Bcrypt
        } else {
            return Err(weak_form(text).map_or(InvalidHash::Unknown, InvalidHash::Weak));
        };
        Ok(Self { text: text.into(), scheme })
    }

    /// The hash as it was read.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether this is the hash of `password`. Takes as long as the hash was made to take: never call it on a thread
    /// that serves others.
    pub(crate) fn verify(&self, password: &Secret) -> bool {
        let password = password.expose_secret();
        match self.scheme {
            Scheme::Argon2id => Argon2::default().verify_password(password.as_bytes(), &*self.text).is_ok(),
            Scheme::Bcrypt => bcrypt::verify(password, &self.text).unwrap_or(false),
        }
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PasswordHash").field(&self.scheme).finish()
    }
}

fn check_argon2id(text: &str) -> Result<(), InvalidHash> {
    const BROKEN: InvalidHash = InvalidHash::Broken("argon2id");
    let hash = argon2::PasswordHash::new(text).map_err(|_| BROKEN)?;
    let params = Params::try_from(&hash).map_err(|_| BROKEN)?;
    let (Some(salt), Some(output)) = (hash.salt, hash.hash) else {
        return Err(BROKEN);
    };
    if hash.version != Some(Version::V0x13.into()) {
        return Err(InvalidHash::Weak("argon2id before version 19"));
    }
    if output.len() < MIN_ARGON2_OUTPUT || salt.len() < MIN_ARGON2_SALT {
        return Err(InvalidHash::Weak("argon2id with a short salt or output"));
    }
    if params.m_cost() < MIN_ARGON2_MEMORY {
        return Err(InvalidHash::Weak("argon2id with less than 4 MiB of memory"));
    }
    if params.m_cost() > MAX_ARGON2_MEMORY
        || u64::from(params.m_cost()) * u64::from(params.t_cost()) > MAX_ARGON2_WORK
        || params.p_cost() > MAX_ARGON2_LANES
    {
        return Err(InvalidHash::TooCostly("argon2id: up to 256 MiB, memory × passes up to 1 GiB, 64 lanes"));
    }
    Ok(())
}

fn check_bcrypt(text: &str) -> Result<(), InvalidHash> {
    let parts: bcrypt::HashParts = text.parse().map_err(|_| InvalidHash::Broken("bcrypt"))?;
    match parts.get_cost() {
        ..MIN_BCRYPT_COST => Err(InvalidHash::Weak("bcrypt of a cost below 5")),
        MIN_BCRYPT_COST..=MAX_BCRYPT_COST => Ok(()),
        _ => Err(InvalidHash::TooCostly("bcrypt: cost up to 15")),
    }
}

/// The name of a form that is known and refused, whatever follows it.
fn weak_form(text: &str) -> Option<&'static str> {
    const FORMS: [(&str, &str); 9] = [
        ("$apr1$", "$apr1$ (MD5)"),
        ("$1$", "$1$ (MD5)"),
        ("$5$", "$5$ (SHA-256 crypt)"),
        ("$6$", "$6$ (SHA-512 crypt)"),
        ("{SHA}", "{SHA} (SHA-1)"),
        ("{SSHA}", "{SSHA} (SHA-1)"),
        ("$2x$", "$2x$ (the bcrypt of a faulty program)"),
        ("$argon2i$", "argon2i"),
        ("$argon2d$", "argon2d"),
    ];
    FORMS.iter().find(|(prefix, _)| text.starts_with(prefix)).map(|(_, name)| *name)
}

/// Hashes a password for an accounts file: argon2id with 19 MiB, two passes and one lane, as OWASP recommends, and a
/// random salt.
///
/// Takes about 20 ms of one core; do not call it on a thread that serves others.
///
/// # Panics
///
/// When the operating system has no random bytes to give.
#[must_use]
pub fn hash_password(password: &Secret) -> String {
    const PARAMS: Params = match Params::new(19 * 1024, 2, 1, Some(32)) {
        Ok(params) => params,
        Err(_) => panic!("parameters within argon2's own bounds"),
    };
    let mut salt = [0; 16];
    rand::fill(&mut salt).expect("the operating system gives random bytes");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, PARAMS)
        .hash_password_with_salt(password.expose_secret().as_bytes(), &salt)
        .expect("parameters, salt and password within argon2's own bounds")
        .to_string()
}

/// Why a text is not taken for the hash of a password. Shows nothing of the text: it might be a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidHash {
    /// A form, or a cost, that a stolen file would not protect.
    Weak(&'static str),
    /// So costly that logins with it would be an attack.
    TooCostly(&'static str),
    /// Begins like a hash of this form and is none.
    Broken(&'static str),
    /// No known form: a plain password, or DES crypt.
    Unknown,
}

impl fmt::Display for InvalidHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weak(what) => write!(f, "{what} is too weak; use argon2id or bcrypt"),
            Self::TooCostly(bounds) => write!(f, "the hash costs too much ({bounds})"),
            Self::Broken(scheme) => write!(f, "broken {scheme} hash"),
            Self::Unknown => {
                f.write_str("not a hash (argon2id or bcrypt); plain passwords are not accepted here")
            }
        }
    }
}

impl Error for InvalidHash {}

#[cfg(test)]
mod tests {
    use super::*;

    const BCRYPT: &str = "$2y$05$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe";

    #[test]
    fn a_hash_made_here_is_read_and_verified_here() {
        let text = hash_password(&"correct horse".into());
        assert!(text.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
        let hash = PasswordHash::parse(&text).unwrap();
        assert!(hash.verify(&"correct horse".into()));
        assert!(!hash.verify(&"correct horsf".into()));
        assert_ne!(text, hash_password(&"correct horse".into()), "the salt is random");
    }

    #[test]
    fn bcrypt_as_htpasswd_writes_it_is_verified() {
        // `$2y$` is crypt_blowfish's own name for what others write as `$2b$`; of passwords shorter than 256 bytes
        // `$2a$` says the same.
        for prefix in ["$2y$", "$2b$", "$2a$"] {
            let hash = PasswordHash::parse(&BCRYPT.replacen("$2y$", prefix, 1)).unwrap();
            assert!(hash.verify(&"password".into()));
            assert!(!hash.verify(&"passwore".into()));
        }
        // From the test vectors of crypt_blowfish.
        let vector = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
        assert!(PasswordHash::parse(vector).unwrap().verify(&"U*U".into()));
    }

    #[test]
    fn weak_forms_are_refused_by_name() {
        for text in [
            "$apr1$lZL6V/ci$eIMz/iKDkbtys/uU7LEK00",
            "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
            "{SSHA}abc",
            "$1$abc$def",
            "$5$abc$def",
            "$6$abc$def",
            "$2x$05$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe",
            "$argon2i$v=19$m=65536,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$+r0d29hqEB0yasKr55ZgICsQGSkl0v0kgwhd+U3wyRo",
            "$argon2id$v=16$m=65536,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$+r0d29hqEB0yasKr55ZgICsQGSkl0v0kgwhd+U3wyRo",
            "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$+r0d29hqEB0yasKr55ZgICsQGSkl0v0kgwhd+U3wyRo",
            "$2y$04$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe",
        ] {
            assert!(matches!(PasswordHash::parse(text), Err(InvalidHash::Weak(_))), "{text}");
        }
    }

    #[test]
    fn p7_plain_and_broken_texts_are_no_hashes_and_are_not_shown() {
        for text in
            ["canary", "", "rl9sgHZ.W3sqc", "$argon2id$canary", "$2y$canary", "$2y$05$né", "$argon2id$v=19$"]
        {
            let error = PasswordHash::parse(text).unwrap_err();
            assert!(matches!(error, InvalidHash::Unknown | InvalidHash::Broken(_)), "{text}");
            assert!(!format!("{error} {error:?}").contains("canary"));
        }
    }

    #[test]
    fn a_hash_cannot_ask_for_all_memory_or_all_time() {
        let with = |params: &str| {
            PasswordHash::parse(&format!(
                "$argon2id$v=19${params}$c29tZXNhbHRzb21lc2FsdA$+r0d29hqEB0yasKr55ZgICsQGSkl0v0kgwhd+U3wyRo"
            ))
        };
        assert!(with("m=262144,t=4,p=1").is_ok());
        for params in
            ["m=262145,t=1,p=1", "m=4294967295,t=1,p=1", "m=4096,t=4294967295,p=1", "m=65536,t=1,p=65"]
        {
            assert!(matches!(with(params), Err(InvalidHash::TooCostly(_))), "{params}");
        }
        let costly = BCRYPT.replacen("$05$", "$16$", 1);
        assert!(matches!(PasswordHash::parse(&costly), Err(InvalidHash::TooCostly(_))));
    }

    #[test]
    fn debug_shows_no_hash() {
        assert_eq!(format!("{:?}", PasswordHash::parse(BCRYPT).unwrap()), "PasswordHash(Bcrypt)");
    }
}
