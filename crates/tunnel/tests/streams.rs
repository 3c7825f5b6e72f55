//! What a stream promises, over pipes that hold next to nothing.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::future::poll_fn;
use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use anyproxy_core::{Datagrams, Guarded, Outcome, lend};
use anyproxy_tunnel::frame::{MIN_WINDOW, OpenOk, ResetCode};
use anyproxy_tunnel::{Config, Memory, StreamReset};
use bytes::{Bytes, BytesMut};
use support::{
    Moody, Pair, Random, echo, idle_pair, is_silent, next_open, pattern, spawn_echo, tcp, udp, until,
};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, duplex};
use tokio::task::JoinSet;

#[tokio::test]
async fn bytes_come_back_as_they_were_sent_however_they_are_split() {
    let mut pair = Pair::new(61, Config::default()).await;
    let (near, far) = pair.stream(tcp()).await;
    let echo = tokio::spawn(echo(far));
    send_and_compare(near, 300_000, 1).await;
    echo.await.unwrap();
}

#[tokio::test]
async fn m18_a_carrier_of_random_moods_loses_no_byte_and_no_wake_up() {
    for seed in 1..=8 {
        let (near, far) = duplex(16 << seed);
        let pair = Pair::over(Moody::new(near, seed), Moody::new(far, seed + 100), Config::default()).await;
        let echo = spawn_echo(pair.requests);
        let mut users = JoinSet::new();
        for user in 0..4 {
            let opening = pair.gateway.open(tcp());
            users.spawn(async move { send_and_compare(opening.await.unwrap().0, 30_000, user).await });
        }
        while let Some(user) = users.join_next().await {
            user.unwrap();
        }
        pair.gateway.drain();
        pair.gateway_driver.await.unwrap();
        pair.client_driver.await.unwrap();
        echo.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_config_may_say_the_least_values_there_are() {
    let says: [fn(&mut Config); 2] =
        [|config| config.mux.max_unanswered = 0, |config| config.send_buffer = 0];
    for say in says {
        let mut config = Config::default();
        say(&mut config);
        let least = config.send_buffer.max(4 * 1024);
        let mut pair = Pair::new(1000, config).await;
        let opened = tokio::time::timeout(std::time::Duration::from_secs(1), pair.stream(tcp())).await;
        let (mut near, mut far) = opened.expect("an open is taken");
        assert_eq!(near.write(&vec![0; 1 << 20]).await.unwrap(), least);
        far.read_exact(&mut vec![0; least]).await.unwrap();
        let echo = tokio::spawn(echo(far));
        send_and_compare(near, 30_000, 1).await;
        echo.await.unwrap();
    }
}

#[tokio::test]
async fn what_is_lent_is_kept_without_a_copy_until_it_has_left() {
    let mut pair = Pair::new(100, Config::default()).await;
    let (near, mut far) = pair.stream(tcp()).await;
    // A wrapper in between need not know.
    let mut near = Guarded::new(near, ());
    let bytes = Bytes::from(pattern(10_000, 1));
    let write = |cx: &mut Context<'_>| lend(&bytes, |bytes| Pin::new(&mut near).poll_write(cx, bytes));
    assert_eq!(poll_fn(write).await.unwrap(), bytes.len());
    assert!(!bytes.is_unique(), "the stream has a share of it");
    let mut received = vec![0; bytes.len()];
    far.read_exact(&mut received).await.unwrap();
    assert_eq!(received, bytes);
    until(|| bytes.is_unique()).await;
}

#[tokio::test]
async fn each_way_ends_by_itself() {
    let mut pair = Pair::new(100, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut question = Vec::new();
    far.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    // The other way goes on.
    far.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    near.read_exact(&mut answer).await.unwrap();
    assert!(is_silent(&mut near).await);
    far.shutdown().await.unwrap();
    assert_eq!(near.read(&mut answer).await.unwrap(), 0);
    until(|| pair.gateway.streams() == 0 && pair.client.streams() == 0).await;
    drop((near, far));
}

#[tokio::test]
async fn writing_behind_the_own_fin_is_a_broken_pipe() {
    let mut pair = Pair::new(100, Config::default()).await;
    let (mut near, _far) = pair.stream(tcp()).await;
    near.shutdown().await.unwrap();
    assert_eq!(near.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_reset_reads_as_a_reset_both_ways() {
    let mut pair = Pair::new(100, Config::default()).await;
    let (mut near, far) = pair.stream(tcp()).await;
    far.reset(ResetCode::PeerReset);
    let error = near.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let why = error.get_ref().and_then(|error| error.downcast_ref());
    assert_eq!(why, Some(&StreamReset::Peer(ResetCode::PeerReset)));
    assert_eq!(near.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(near.shutdown().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stream_dropped_unfinished_is_a_reset_for_the_peer() {
    let mut pair = Pair::new(100, Config::default()).await;
    for half in [false, true] {
        let (mut near, mut far) = pair.stream(tcp()).await;
        if half {
            near.shutdown().await.unwrap();
            assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
        }
        drop(near);
        if half {
            // Reads go on to be a clean end: the fin came first. The writer learns it.
            until(|| pair.client.streams() == 0).await;
            assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
        } else {
            assert_eq!(far.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!(far.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn m13_what_came_before_a_fin_is_read_though_a_reset_followed() {
    let mut pair = Pair::new(100, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    far.write_all(&pattern(5_000, 1)).await.unwrap();
    far.shutdown().await.unwrap();
    drop(far);
    // The reset has come, and the bytes still wait.
    until(|| pair.client.streams() == 0).await;
    let mut read = Vec::new();
    near.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, pattern(5_000, 1));
    assert_eq!(near.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_came_before_a_reset_is_read_before_it() {
    let mut pair = Pair::new(100, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    far.write_all(b"last words").await.unwrap();
    until(|| pair.client.unsent() == 0).await;
    // Once read, the rest of the words is on this side.
    near.read_exact(&mut [0; 4]).await.unwrap();
    drop(far);
    until(|| pair.client.streams() == 0).await;
    near.read_exact(&mut [0; 6]).await.unwrap();
    assert_eq!(near.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reader_that_stops_stops_its_sender_and_no_other() {
    let config = Config::default();
    let most = config.mux.window as usize + config.send_buffer;
    let mut pair = Pair::new(1000, config).await;
    let (mut stopped, mut unread) = pair.stream(tcp()).await;
    let chunk = vec![7; 10_000];
    // All that fits: the window, and what waits for it.
    let (mut taken, mut refused) = (0, 0);
    while refused < 1000 {
        let write = poll_fn(|cx| Poll::Ready(Pin::new(&mut stopped).poll_write(cx, &chunk)));
        match write.await {
            Poll::Ready(written) => (taken, refused) = (taken + written.unwrap(), 0),
            Poll::Pending => refused += 1,
        }
        tokio::task::yield_now().await;
    }
    assert!((most - 4096..=most).contains(&taken), "{taken} bytes taken");
    let (near, far) = pair.stream(tcp()).await;
    let echo = tokio::spawn(echo(far));
    send_and_compare(near, 1_000_000, 2).await;
    echo.await.unwrap();
    let write = poll_fn(|cx| Poll::Ready(Pin::new(&mut stopped).poll_write(cx, &chunk))).await;
    assert!(write.is_pending());
    // And goes on when the reader does.
    let reader = tokio::spawn(async move {
        let mut read = Vec::new();
        unread.read_to_end(&mut read).await.map(|_| read.len())
    });
    stopped.write_all(&chunk).await.unwrap();
    stopped.shutdown().await.unwrap();
    assert_eq!(reader.await.unwrap().unwrap(), taken + chunk.len());
}

#[tokio::test]
async fn credit_returns_while_the_reader_has_more_in_hand() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    near.write_all(&pattern(256 * 1024, 6)).await.unwrap();
    until(|| pair.gateway.unsent() == 0 && pair.client.held() == 256 * 1024).await;
    near.write_all(&pattern(100, 7)).await.unwrap();
    // One look takes all of it in hand; what is left of it is never asked for again.
    far.read_exact(&mut vec![0; 200 * 1024]).await.unwrap();
    // Told in steps of 64 KiB, three of them; and there is room for more.
    until(|| pair.client.held() == 64 * 1024 + 100).await;
}

#[tokio::test(start_paused = true)]
async fn i13_credit_returns_whatever_a_window_is_and_however_it_is_used_up() {
    // A crowd makes windows of any size between the smallest and the usual one.
    for window in [MIN_WINDOW, 20_336, 24_575, 2 * MIN_WINDOW + 1] {
        let mut config = Config::default();
        config.mux.window = window;
        let mut pair = Pair::new(64 * 1024, config).await;
        for seed in 0..20 {
            let (near, mut far) = pair.stream(tcp()).await;
            let mut random = Random::new(seed);
            let pieces: Vec<_> = (0..12).map(|_| 1 + random.below(10_000) as usize).collect();
            let sending = tokio::spawn({
                let pieces = pieces.clone();
                async move {
                    let mut near = near;
                    for length in pieces {
                        near.write_all(&vec![7; length]).await.unwrap();
                        // The next piece comes when this one was read and reported, or kept back.
                        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    }
                    near
                }
            });
            let all = async {
                for length in &pieces {
                    far.read_exact(&mut vec![0; *length]).await.unwrap();
                }
            };
            let minute = std::time::Duration::from_secs(60);
            assert!(tokio::time::timeout(minute, all).await.is_ok(), "window {window}, pieces {pieces:?}");
            drop(sending.await.unwrap());
        }
    }
}

#[tokio::test]
async fn more_than_a_turn_of_the_driver_moves_comes_through() {
    let mut pair = Pair::new(64 * 1024 * 1024, Config::default()).await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        streams.push(pair.stream(tcp()).await);
    }
    // No turn for the drivers in between: 8 MB at once.
    let sent = pattern(200_000, 8);
    for (near, _) in &mut streams {
        near.send(Bytes::from(sent.clone())).await.unwrap();
    }
    for (_, far) in &mut streams {
        let mut read = vec![0; sent.len()];
        far.read_exact(&mut read).await.unwrap();
        assert!(read == sent);
    }
}

#[tokio::test]
async fn a_stream_dropped_behind_the_peer_s_fin_but_without_its_own_is_a_reset() {
    let mut pair = Pair::new(100, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    far.shutdown().await.unwrap();
    assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
    drop(near);
    assert_eq!(far.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn shutdown_waits_until_everything_has_left() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    // Twice the window: half of it cannot leave yet.
    let sent = pattern(2 * 256 * 1024, 3);
    near.write_all(&sent).await.unwrap();
    let shutdown = tokio::spawn(async move {
        near.shutdown().await.unwrap();
        near
    });
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!shutdown.is_finished());
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert!(read == sent);
    shutdown.await.unwrap();
}

#[tokio::test]
async fn vectored_and_owned_writes_arrive_in_order() {
    let mut pair = Pair::new(100, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    let bufs = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
    assert!(near.is_write_vectored());
    assert_eq!(near.write_vectored(&bufs).await.unwrap(), 5);
    near.send(Bytes::from_static(b"fgh")).await.unwrap();
    near.shutdown().await.unwrap();
    let mut read = String::new();
    far.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "abcdefgh");
}

#[tokio::test]
async fn owned_bytes_beyond_the_send_buffer_are_taken_in_parts() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    let sent = Bytes::from(pattern(2_000_000, 4));
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        near.send(sent).await.unwrap();
        near.shutdown().await.unwrap();
    });
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert!(read == expected);
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_streams_live_at_once() {
    let pair = Pair::new(64 * 1024, Config::default()).await;
    let echo = spawn_echo(pair.requests);
    let mut users = JoinSet::new();
    for user in 0..1000 {
        let opening = pair.gateway.open(tcp());
        users.spawn(async move { send_and_compare(opening.await.unwrap().0, 5_000, user).await });
    }
    while let Some(user) = users.join_next().await {
        user.unwrap();
    }
    until(|| pair.gateway.streams() == 0 && pair.client.streams() == 0).await;
    pair.gateway.close();
    echo.await.unwrap();
}

#[tokio::test]
async fn what_is_held_is_told_and_given_up_with_its_stream() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (mut near, far) = pair.stream(tcp()).await;
    near.write_all(&[0; 100_000]).await.unwrap();
    until(|| pair.client.held() == 100_000).await;
    drop(far);
    until(|| pair.client.held() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_writer_of_a_tunnel_made_while_memory_was_short_goes_on_when_half_has_left() {
    let mut config = Config::default();
    config.send_buffer = 1 << 20;
    config.mux.max_window = config.mux.window;
    config.memory = Memory::new(1 << 30);
    let mut others = config.memory.share();
    others.set(1 << 30);
    let mut pair = Pair::new(1000, config).await;
    others.set(0);
    let (mut near, mut far) = pair.stream(tcp()).await;
    let writer = tokio::spawn(async move { near.write_all(&vec![0; (1 << 20) + 1]).await.map(|()| near) });
    // And a window of 256 KiB leaves: more than half of it in all, and far from all of it.
    far.read_exact(&mut vec![0; 1 << 19]).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(1), writer)
        .await
        .expect("the last byte is taken")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn where_memory_runs_short_a_stopped_reader_is_sent_less() {
    let mut config = Config::default();
    config.memory = Memory::new(1 << 30);
    let mut others = config.memory.share();
    // Enough for another stream, and no more.
    others.set((1 << 30) / 8 * 7 - 100_000);
    let mut pair = Pair::new(1000, config).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    let writer = tokio::spawn(async move {
        near.write_all(&[0; 200_000]).await.unwrap();
        near.shutdown().await.unwrap();
    });
    until(|| pair.client.held() > 0).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(pair.client.held() <= MIN_WINDOW as usize, "{}", pair.client.held());
    // It goes on all the same.
    let reader = tokio::spawn(async move { far.read_to_end(&mut Vec::new()).await });
    writer.await.unwrap();
    assert_eq!(reader.await.unwrap().unwrap(), 200_000);
}

#[tokio::test]
async fn both_ends_give_a_stream_the_same_name() {
    let mut pair = Pair::new(100, Config::default()).await;
    for number in 1..=3 {
        let (near, far) = pair.stream(tcp()).await;
        assert_eq!(near.stream_ref(), far.stream_ref());
        assert_eq!((near.stream_ref().session, near.stream_ref().number), (support::SESSION, number));
    }
}

#[tokio::test]
async fn datagrams_stay_whole_empty_and_largest_ones_too() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (near, far) = pair.stream(udp()).await;
    let (mut near, mut far) = (Datagrams::new(near), Datagrams::new(far));
    let mut received = BytesMut::new();
    for len in [0, 1, 512, 1472, 9000, 65_507, 0] {
        let sent = pattern(len, len as u64);
        let kept = poll_fn(|cx| Poll::Ready(near.send_now(cx, &sent))).await.unwrap();
        assert!(kept);
        received.clear();
        assert!(far.recv(&mut received).await.unwrap());
        assert!(received == sent, "a datagram of {len} bytes");
    }
}

#[tokio::test]
async fn u10_datagrams_that_find_no_room_are_dropped_and_counted_and_nobody_waits() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (near, far) = pair.stream(udp()).await;
    let (mut near, mut far) = (Datagrams::new(near), Datagrams::new(far));
    // No turn for the driver in between.
    let sent = poll_fn(|cx| {
        let sent = (0..10_000_u32).filter(|n| near.send_now(cx, &n.to_be_bytes()).unwrap()).count();
        Poll::Ready(sent)
    })
    .await;
    assert_eq!(sent, 256);
    // The oldest are those that were kept, and they are in order.
    let mut received = BytesMut::new();
    for n in 0..256_u32 {
        received.clear();
        assert!(far.recv(&mut received).await.unwrap());
        assert_eq!(received[..], n.to_be_bytes());
    }
}

#[tokio::test]
async fn u10_whoever_sends_datagrams_on_a_stalled_tunnel_is_told_of_each_that_is_dropped() {
    let (near, far) = duplex(1_000);
    let ((gateway, gateway_driver), (_client, mut requests, mut client_driver)) =
        idle_pair(near, far, Config::default()).await;
    let _gateway_driver = tokio::spawn(gateway_driver);
    let opening = async {
        let accepting = async { next_open(&mut requests).await.unwrap().accept(OpenOk::default()) };
        let (opened, far) = tokio::join!(gateway.open(udp()), accepting);
        (opened.unwrap().0, far)
    };
    let (near, far) = tokio::select! {
        streams = opening => streams,
        reason = &mut client_driver => panic!("{reason:?}"),
    };
    // From here on the client's end stands still, and the gateway's has its turns.
    let (mut near, mut far) = (Datagrams::new(near), Datagrams::new(far));
    let mut sent = Vec::new();
    for n in 0..10_000 {
        let datagram = pattern(1_000, n);
        if poll_fn(|cx| Poll::Ready(near.send_now(cx, &datagram))).await.unwrap() {
            sent.push(datagram);
        }
        tokio::task::yield_now().await;
    }
    assert!(sent.len() < 1_000, "{} of 10,000 on their way", sent.len());
    assert_eq!(gateway.dropped_datagrams(), 0);
    let _client_driver = tokio::spawn(client_driver);
    let mut received = BytesMut::new();
    for datagram in &sent {
        received.clear();
        assert!(far.recv(&mut received).await.unwrap());
        assert!(received == datagram);
    }
    // And there is room again.
    assert!(poll_fn(|cx| Poll::Ready(near.send_now(cx, b"next"))).await.unwrap());
}

#[tokio::test]
async fn u10_datagrams_that_nobody_reads_are_counted_beyond_the_end_of_their_tunnel() {
    let config = Config::default();
    let dropped = config.dropped_datagrams.clone();
    let mut pair = Pair::new(1_000, config).await;
    let (near, _far) = pair.stream(udp()).await;
    let mut near = Datagrams::new(near);
    let mut sent = 0;
    while sent < 1_000 {
        let is_sent = poll_fn(|cx| Poll::Ready(near.send_now(cx, b"unread"))).await.unwrap();
        sent += u64::from(is_sent);
        tokio::task::yield_now().await;
    }
    until(|| dropped.get() == sent - 256).await;
    assert_eq!(pair.client.dropped_datagrams(), dropped.get());
    drop(pair);
    assert_eq!(dropped.get(), sent - 256);
}

#[tokio::test]
async fn datagrams_written_in_any_pieces_are_those_that_come_out() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (mut near, far) = pair.stream(udp()).await;
    let mut far = Datagrams::new(far);
    let mut random = Random::new(5);
    let datagrams: Vec<_> = (0..100).map(|n| pattern(random.below(300) as usize, n)).collect();
    let mut framed = Vec::new();
    for datagram in &datagrams {
        framed.extend_from_slice(&(datagram.len() as u16).to_be_bytes());
        framed.extend_from_slice(datagram);
    }
    let mut rest = &framed[..];
    while !rest.is_empty() {
        let len = rest.len().min(1 + random.below(200) as usize);
        near.write_all(&rest[..len]).await.unwrap();
        rest = &rest[len..];
        tokio::task::yield_now().await;
    }
    let mut received = BytesMut::new();
    for datagram in datagrams {
        received.clear();
        assert!(far.recv(&mut received).await.unwrap());
        assert!(received == datagram);
    }
    near.shutdown().await.unwrap();
    assert!(!far.recv(&mut received).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i9_a_mix_of_endings_leaves_nothing_behind() {
    let pair = Pair::new(5000, Config::default()).await;
    let mut requests = pair.requests;
    let client = tokio::spawn(async move {
        let mut streams = JoinSet::new();
        let mut n = 0;
        while let Some(request) = next_open(&mut requests).await {
            n += 1;
            match n % 5 {
                0 => drop(request),
                1 => drop(request.accept(OpenOk::default())),
                2 => {
                    let mut stream = request.accept(OpenOk::default());
                    streams.spawn(async move {
                        let _ = stream.write_all(&[1; 100_000]).await;
                        let _ = stream.shutdown().await;
                    });
                }
                _ => {
                    streams.spawn(echo(request.accept(OpenOk::default())));
                }
            }
        }
        while streams.join_next().await.is_some() {}
    });
    let mut users = JoinSet::new();
    let mut random = Random::new(9);
    for user in 0..500 {
        let opening = pair.gateway.open(tcp());
        let (patience, end) = (random.below(20), random.below(4));
        users.spawn(async move {
            let leave = async {
                for _ in 0..patience {
                    tokio::task::yield_now().await;
                }
            };
            let opened = tokio::select! {
                opened = opening => opened,
                () = leave => return,
            };
            let Ok((mut stream, _)) = opened else { return };
            let _ = stream.write_all(&pattern(10_000, user)).await;
            match end {
                0 => {}
                1 => stream.reset(ResetCode::Internal),
                2 => drop(stream.shutdown().await),
                _ => {
                    let _ = stream.shutdown().await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            }
        });
    }
    while let Some(user) = users.join_next().await {
        user.unwrap();
    }
    until(|| pair.gateway.streams() == 0 && pair.client.streams() == 0).await;
    assert_eq!((pair.gateway.unsent(), pair.client.unsent()), (0, 0));
    pair.gateway.drain();
    assert_eq!(pair.gateway_driver.await.unwrap().as_str(), "drained");
    assert_eq!(pair.client_driver.await.unwrap().as_str(), "drained");
    client.await.unwrap();
}

/// Writes in random pieces and reads what comes back until the end.
async fn send_and_compare(stream: anyproxy_tunnel::Stream, len: usize, seed: u64) {
    let sent = pattern(len, seed);
    let expected = sent.clone();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = tokio::spawn(async move {
        let mut random = Random::new(seed);
        let mut rest = &sent[..];
        while !rest.is_empty() {
            let len = rest.len().min(1 + random.below(9000) as usize);
            writer.write_all(&rest[..len]).await.unwrap();
            rest = &rest[len..];
        }
        writer.shutdown().await.unwrap();
        writer
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).await.unwrap();
    assert!(received == expected, "{} of {len} bytes", received.len());
    writing.await.unwrap();
}

#[tokio::test]
async fn f9_what_a_process_holds_for_streams_has_one_bound_and_all_of_it_comes_back() {
    const LIMIT: u64 = 4 << 20;
    let mut config = Config::default();
    config.memory = Memory::new(LIMIT);
    let memory = config.memory.clone();
    let Pair { gateway, mut requests, client: _client, .. } = Pair::new(1000, config).await;
    // Nobody reads these.
    let keeping = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(request) = next_open(&mut requests).await {
            kept.push(request.accept(OpenOk::default()));
        }
    });
    let mut streams = Vec::new();
    let refused = loop {
        let mut near = match gateway.open(tcp()).await {
            Ok((near, _)) => near,
            Err(refused) => break refused,
        };
        // All that a stream takes at once.
        let room = poll_fn(|cx| near.poll_room(cx)).await.unwrap();
        near.write_all(&vec![0; room]).await.unwrap();
        streams.push(near);
        assert!(streams.len() < 5_000 && memory.used() <= LIMIT, "{} in use", memory.used());
    };
    assert!(matches!(Outcome::of(&refused), Outcome::Overloaded { .. }), "{refused}");
    assert!(streams.len() > 8, "{} streams", streams.len());
    drop(streams);
    keeping.abort();
    until(|| memory.used() == 0).await;
}

#[tokio::test]
async fn i6_a_crowd_of_stalled_writers_holds_no_more_than_a_tunnel_may() {
    const STREAMS: usize = 200;
    let mut config = Config::default();
    (config.mux.held_bytes, config.mux.held_limit) = (1 << 20, 4 << 20);
    let Pair { gateway, mut requests, client: _client, .. } = Pair::new(1000, config).await;
    // Nobody reads these.
    let _keeping = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(request) = next_open(&mut requests).await {
            kept.push(request.accept(OpenOk::default()));
        }
    });
    let mut writers = JoinSet::new();
    for _ in 0..STREAMS {
        let (mut near, _) = gateway.open(tcp()).await.unwrap();
        writers.spawn(async move { near.write_all(&vec![0; 1 << 20]).await });
        assert!(gateway.unsent() <= (4 << 20) + STREAMS * 4096, "{} unsent", gateway.unsent());
    }
    until(|| gateway.unsent() > 1 << 20).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        assert!(gateway.unsent() <= (4 << 20) + STREAMS * 4096, "{} unsent", gateway.unsent());
    }
}
