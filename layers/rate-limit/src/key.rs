use anyproxy_core::{Dial, Digest, SourcePrefix};

/// Whose dials, or bytes, are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// One user's: the same name in the same group, whatever front they come through. Of those who were not asked for a
    /// name, all from one [`SourcePrefix`].
    User,
    /// All of one group's users.
    Group,
    /// All from one [`SourcePrefix`].
    Source,
}

impl Key {
    /// The key of `dial`, digested.
    pub(crate) fn of(self, dial: &Dial) -> Digest {
        match self {
            Self::User => dial.who(),
            Self::Group => Digest::of(&dial.identity.group()),
            Self::Source => Digest::of(&SourcePrefix::from(dial.source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_core::{Account, Front, Target};

    use super::*;

    fn dial(source: &str, user: Option<(&str, &str)>) -> Dial {
        let mut dial = Dial::tcp(Target::parse("a:1").unwrap(), source.parse().unwrap(), Front::HTTP);
        if let Some((user, group)) = user {
            dial.identity = Account::new(user, [group]).into();
        }
        dial
    }

    #[test]
    fn each_key_tells_apart_what_it_is_named_after() {
        let of = |key: Key, source, user| key.of(&dial(source, user));
        let (a, b) = ("192.0.2.1:1", "192.0.2.2:1");
        let (alice, bob) = (Some(("alice", "blue")), Some(("bob", "blue")));

        assert_eq!(of(Key::User, a, alice), of(Key::User, b, alice));
        assert_ne!(of(Key::User, a, alice), of(Key::User, a, bob));
        assert_ne!(of(Key::User, a, alice), of(Key::User, a, Some(("alice", "green"))));
        assert_ne!(of(Key::User, a, None), of(Key::User, a, Some(("", "default"))));
        assert_ne!(of(Key::User, a, None), of(Key::User, b, None), "nobody uses up what strangers have");
        assert_eq!(of(Key::User, a, None), of(Key::User, "192.0.2.1:9", None));
        assert_eq!(of(Key::Group, a, alice), of(Key::Group, b, bob));
        assert_eq!(of(Key::Source, a, alice), of(Key::Source, "192.0.2.1:9", bob));
        assert_ne!(of(Key::Source, a, alice), of(Key::Source, b, alice));
    }
}
