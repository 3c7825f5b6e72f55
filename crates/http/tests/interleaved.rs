//! Case H19: requests under way at once, and whose answer is whose.

mod play;

use play::{Stage, Target};

const USERS: usize = 10;

#[tokio::test]
async fn h19_no_response_carries_another_request_s_token() {
    let stage = Stage::keeping();
    let mut users: Vec<_> = (0..USERS).map(|_| stage.user()).collect();
    let mut seed = 7_u64;
    let mut any = |of: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % of
    };
    let mut cut = 0;
    for round in 0..100 {
        for (user, number) in users.iter_mut().zip(0..) {
            user.say(&format!("GET http://t/{round:03}/{number} HTTP/1.1\r\nHost: t\r\n\r\n")).await;
        }
        // All are asked before any answers: by the streams that connections keep, and by new ones, which come in any order.
        let mut asked: Vec<(usize, Target)> = Vec::new();
        for (number, user) in users.iter_mut().enumerate() {
            let kept = user.kept.take();
            let owner = kept.is_some().then_some(number);
            let mut target = match kept {
                Some(kept) => kept,
                None => stage.target().await,
            };
            let head = target.head().await;
            let of = head.strip_prefix(&format!("GET /{round:03}/")).and_then(|rest| rest.split(' ').next());
            let of = of.unwrap_or_else(|| panic!("round {round}: {head:?}")).parse().unwrap();
            assert!(
                owner.is_none_or(|owner| owner == of),
                "round {round}: {head:?} on the stream of {owner:?}"
            );
            asked.push((of, target));
        }
        while !asked.is_empty() {
            let (number, mut target) = asked.swap_remove(any(asked.len()));
            let token = format!("{round:03}/{number}");
            target.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", token.len())).await;
            match any(20) {
                // Left by the user, somewhere in the answer.
                0 => {
                    target.say(&token[..any(token.len())]).await;
                    users[number] = stage.user();
                    cut += 1;
                }
                // Cut off by the target.
                1 => {
                    let part = &token[..any(token.len())];
                    target.say(part).await;
                    drop(target);
                    users[number].head().await;
                    assert_eq!(users[number].rest().await, part);
                    users[number] = stage.user();
                    cut += 1;
                }
                _ => {
                    target.say(&token).await;
                    users[number].head().await;
                    assert_eq!(users[number].take(token.len()).await, token);
                    users[number].kept = Some(target);
                }
            }
        }
    }
    assert!((70..=130).contains(&cut), "a tenth of 1,000, not {cut}");
}
