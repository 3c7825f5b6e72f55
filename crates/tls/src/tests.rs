//! Two ends in memory: both ours, or ours and rustls' own.

use std::io::{self, IoSlice};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{
    AlertDescription, CipherSuite, ClientConfig, ClientConnection, Error, HandshakeKind, InvalidMessage,
    PeerMisbehaved, RootCertStore, ServerConfig,
};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::Stream;
use crate::buffer::Buffer;
use crate::connection::{Connection, Step};
use crate::model::{Pair, name, play, put};
use crate::record::{HEAD, MAX_CONTENT, OVERHEAD, kind};
use crate::stream::Layer;
use crate::traffic::{MAX_QUIET, RECORDS_PER_READ, Read};

/// Settings of both ends that agree on nothing but `suite`.
fn configs(suite: CipherSuite) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let mut provider = CryptoProvider::clone(&crate::provider());
    provider.cipher_suites.retain(|offered| offered.suite() == suite);
    configs_of(provider.clone(), provider)
}

/// Settings of a client and of a server that it trusts, each with its own ciphers.
pub(crate) fn configs_of(
    client: CryptoProvider,
    server: CryptoProvider,
) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let chain: Vec<CertificateDer<'static>> = vec![signed.cert.der().clone()];
    let server = ServerConfig::builder_with_provider(Arc::new(server))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), PrivateKeyDer::Pkcs8(signed.signing_key.serialize_der().into()))
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(client))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(client), Arc::new(server))
}

const SUITES: [CipherSuite; 5] = [
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// Our client and rustls' server.
async fn our_client(
    (client, server): &(Arc<ClientConfig>, Arc<ServerConfig>),
    line: usize,
) -> (Stream<DuplexStream>, server::TlsStream<DuplexStream>) {
    let (near, far) = duplex(line);
    let accept = TlsAcceptor::from(server.clone()).accept(far);
    tokio::try_join!(Stream::connect(near, client, name()), accept).unwrap()
}

/// Our server and rustls' client.
async fn our_server(
    (client, server): &(Arc<ClientConfig>, Arc<ServerConfig>),
    line: usize,
) -> (Stream<DuplexStream>, client::TlsStream<DuplexStream>) {
    let (near, far) = duplex(line);
    let connect = TlsConnector::from(client.clone()).connect(name(), far);
    tokio::try_join!(Stream::accept(near, server), connect).unwrap()
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|byte| (byte % 251) as u8).collect()
}

/// Says `said` to the other, which hears just that, then the end; in pieces of `piece`, heard `heard` at a time.
async fn talk(
    mut from: impl AsyncWrite + Unpin,
    mut to: impl AsyncRead + Unpin,
    said: &[u8],
    (piece, heard): (usize, usize),
) {
    let say = async {
        for piece in said.chunks(piece) {
            from.write_all(piece).await.unwrap();
        }
        from.shutdown().await.unwrap();
    };
    let hear = async {
        let (mut all, mut part) = (Vec::new(), vec![0; heard]);
        loop {
            match to.read(&mut part).await.unwrap() {
                0 => return all,
                read => all.extend_from_slice(&part[..read]),
            }
        }
    };
    let ((), all) = tokio::join!(say, hear);
    assert!(all == said, "{} of {} bytes, in pieces of {piece} and {heard}", all.len(), said.len());
}

#[tokio::test]
async fn w12_both_sides_speak_with_rustls_in_each_suite_whatever_the_sizes() {
    let said = bytes(300_000);
    for suite in SUITES {
        let configs = configs(suite);
        for line in [700, 64 * 1024, 1024 * 1024] {
            for sizes in [(300_000, 300_000), (MAX_CONTENT, MAX_CONTENT + 1), (1_000, 70_000), (70_000, 999)]
            {
                let (mut ours, mut theirs) = our_client(&configs, line).await;
                talk(&mut ours, &mut theirs, &said, sizes).await;
                talk(&mut theirs, &mut ours, &said, sizes).await;
                let (mut ours, mut theirs) = our_server(&configs, line).await;
                talk(&mut ours, &mut theirs, &said, sizes).await;
                talk(&mut theirs, &mut ours, &said, sizes).await;
            }
        }
    }
}

#[tokio::test]
async fn both_sides_can_be_ours() {
    for suite in SUITES {
        let (client, server) = configs(suite);
        let (near, far) = duplex(10_000);
        let (mut near, mut far) =
            tokio::try_join!(Stream::connect(near, &client, name()), Stream::accept(far, &server)).unwrap();
        talk(&mut near, &mut far, &bytes(100_000), (50_000, 50_000)).await;
        talk(&mut far, &mut near, &bytes(100_000), (50_000, 50_000)).await;
        let error = near.write(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "after the goodbye");
    }
}

#[tokio::test]
async fn pieces_leave_in_order_as_full_records() {
    let (mut ours, mut theirs) = our_client(&configs(SUITES[0]), 1024 * 1024).await;
    let said = bytes(2 * MAX_CONTENT + 100);
    let (head, rest) = said.split_at(100);
    let (long, tail) = rest.split_at(2 * MAX_CONTENT - 50);
    let pieces = [&[][..], head, &[], long, tail, &[]].map(IoSlice::new);
    assert_eq!(ours.write_vectored(&pieces).await.unwrap(), said.len());
    let mut heard = vec![0; said.len()];
    theirs.read_exact(&mut heard).await.unwrap();
    assert!(heard == said);
    assert!(ours.is_write_vectored());
    assert_eq!(ours.write(&[]).await.unwrap(), 0);
}

#[tokio::test]
async fn nothing_is_taken_while_sealed_bytes_wait_and_all_of_it_arrives() {
    let (mut ours, mut theirs) = our_client(&configs(SUITES[0]), 4_096).await;
    let said = bytes(200_000);
    assert_eq!(ours.write(&said).await.unwrap(), said.len());
    assert!(tokio_test::task::spawn(ours.write(b"x")).poll().is_pending());
    let mut heard = vec![0; said.len()];
    let (flushed, read) = tokio::join!(ours.flush(), theirs.read_exact(&mut heard));
    flushed.unwrap();
    read.unwrap();
    assert!(heard == said);
    assert!(tokio_test::task::spawn(ours.write(b"x")).poll().is_ready());
}

#[tokio::test]
async fn the_peer_may_change_its_key_and_ask_for_ours() {
    let configs = configs(SUITES[0]);
    let (mut ours, mut theirs) = our_server(&configs, 1024 * 1024).await;
    for round in 0..3 {
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        theirs.write_all(&bytes(50_000)).await.unwrap();
        let mut heard = vec![0; 50_000];
        ours.read_exact(&mut heard).await.unwrap();
        assert!(heard == bytes(50_000), "round {round}");
        // With this answer goes our new key: rustls asks for one.
        assert!(ours.traffic().owes_update());
        ours.write_all(&bytes(50_000)).await.unwrap();
        assert!(!ours.traffic().owes_update());
        theirs.read_exact(&mut heard).await.unwrap();
        assert!(heard == bytes(50_000), "round {round}");
    }
}

#[tokio::test]
async fn a_key_that_has_sealed_enough_is_changed() {
    let configs = configs(SUITES[1]);
    let (mut ours, mut theirs) = our_client(&configs, 1024 * 1024).await;
    ours.traffic().set_limit(3);
    let said = bytes(10 * MAX_CONTENT);
    talk(&mut ours, &mut theirs, &said, (100_000, 100_000)).await;
    assert!(ours.traffic().sealed() <= 4, "with the goodbye");
    talk(&mut theirs, &mut ours, &said, (100_000, 100_000)).await;
}

#[tokio::test]
async fn a_session_is_resumed_with_the_ticket_of_the_last() {
    for suite in [SUITES[0], SUITES[3]] {
        let configs = configs(suite);
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let (mut ours, mut theirs) = our_client(&configs, 1024 * 1024).await;
            talk(&mut theirs, &mut ours, b"tickets come before this", (100, 100)).await;
            let kind = theirs.get_ref().1.handshake_kind().unwrap();
            assert_eq!(kind, expected, "{suite:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_ends_without_goodbye_is_no_end() {
    for suite in [SUITES[0], SUITES[3]] {
        let configs = configs(suite);
        let (mut ours, mut theirs) = our_client(&configs, 1024 * 1024).await;
        theirs.write_all(b"some").await.unwrap();
        theirs.flush().await.unwrap();
        drop(theirs);
        let mut heard = Vec::new();
        let error = ours.read_to_end(&mut heard).await.unwrap_err();
        assert_eq!((error.kind(), &heard[..]), (io::ErrorKind::UnexpectedEof, &b"some"[..]), "{suite:?}");
    }
}

#[tokio::test]
async fn a_handshake_that_fails_says_why_and_tells_the_peer() {
    let ((client, _), (_, server)) = (configs(SUITES[0]), configs(SUITES[0]));
    let (near, far) = duplex(64 * 1024);
    let accept = TlsAcceptor::from(server).accept(far);
    let (ours, theirs) = tokio::join!(Stream::connect(near, &client, name()), accept);
    let error = ours.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let error = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    assert!(matches!(error, Error::InvalidCertificate(_)), "{error:?}");
    let told = theirs.unwrap_err();
    let told = told.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    assert!(matches!(told, Error::AlertReceived(_)), "{told:?}");
}

#[tokio::test]
async fn a_server_that_allows_data_before_the_end_of_a_handshake_waits_for_that_end() {
    for suite in SUITES {
        let (client, server) = configs(suite);
        let (mut eager_client, mut eager) = (ClientConfig::clone(&client), ServerConfig::clone(&server));
        eager.send_half_rtt_data = true;
        eager.max_early_data_size = 1024;
        eager_client.enable_early_data = true;
        let configs = (Arc::new(eager_client), Arc::new(eager));
        let (mut ours, mut theirs) = our_server(&configs, 64 * 1024).await;
        talk(&mut ours, &mut theirs, b"down", (4, 4)).await;
        talk(&mut theirs, &mut ours, b"up", (2, 2)).await;
        // It has a ticket by now, and that allows none.
        let mut again = ClientConnection::new(configs.0.clone(), name()).unwrap();
        assert!(again.early_data().is_none(), "{suite:?}");
    }
}

#[tokio::test]
async fn w8_a_hello_without_an_end_costs_bounded_memory() {
    let (_, server) = configs(SUITES[0]);
    // A handshake message of 16 MiB in full records; one of 64 KiB, a byte in each.
    for (head, size) in [([1, 255, 255, 255], MAX_CONTENT), ([1, 0, 255, 240], 1)] {
        let (mut near, far) = duplex(1024 * 1024);
        let flood = async {
            let mut first = vec![22, 3, 3, 0, 4];
            first.extend_from_slice(&head);
            near.write_all(&first).await.unwrap();
            let mut next = vec![22, 3, 3, (size >> 8) as u8, size as u8];
            next.resize(HEAD + size, 0);
            while near.write_all(&next).await.is_ok() {}
        };
        let ((), accepted) = tokio::join!(flood, Stream::accept(far, &server));
        assert_eq!(accepted.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

#[tokio::test]
async fn w8_a_hello_of_one_byte_in_each_record_is_understood() {
    let (client, server) = configs(SUITES[0]);
    let mut hello = Buffer::default();
    let mut client = Connection::client(UnbufferedClientConnection::new(client, name()).unwrap());
    while client.step(&mut Buffer::default(), &mut hello).unwrap() == Step::Again {}
    let (mut near, far) = duplex(1024 * 1024);
    for byte in &hello.filled()[HEAD..] {
        near.write_all(&[22, 3, 1, 0, 1, *byte]).await.unwrap();
    }
    let answered = async { near.read_u8().await.unwrap() };
    let accept = Stream::accept(far, &server);
    tokio::select! {
        // A handshake record: the server's hello.
        first = answered => assert_eq!(first, 22),
        accepted = accept => panic!("{accepted:?}"),
    }
}

#[tokio::test]
async fn what_is_no_record_is_refused_by_its_head_and_the_alert_said_once() {
    let (client, server) = configs(SUITES[0]);
    // Somebody speaks HTTP; a version that was never one; a record longer than any; a kind that there is not.
    let heads = [*b"GET /", [22, 4, 0, 0, 1], [22, 3, 3, 0x48, 0], [99, 3, 3, 0, 1]];
    for head in heads {
        let (mut near, far) = duplex(1024);
        near.write_all(&head).await.unwrap();
        let error = Stream::accept(far, &server).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut told = Vec::new();
        near.read_to_end(&mut told).await.unwrap();
        assert_eq!((told.len(), &told[..3]), (7, &[21, 3, 3][..]), "{head:?}: one alert");
    }
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let error = Stream::connect(far, &client, name()).await.unwrap_err();
    let error = error.get_ref().unwrap().downcast_ref();
    assert_eq!(error, Some(&Error::InvalidMessage(InvalidMessage::InvalidContentType)));
}

#[tokio::test]
async fn a_failure_of_tls_1_2_is_for_good_too() {
    // What nobody can open, and an alert.
    for (kind, length) in [(23, 40), (21, 26)] {
        let (mut ours, mut theirs) = our_client(&configs(SUITES[3]), 1024 * 1024).await;
        let mut record = vec![kind, 3, 3, 0, length];
        record.resize(HEAD + usize::from(length), 0);
        theirs.get_mut().0.write_all(&record).await.unwrap();
        for _ in 0..2 {
            let error = ours.read(&mut [0; 100]).await.unwrap_err();
            assert_eq!(error.get_ref().unwrap().downcast_ref(), Some(&Error::DecryptError));
        }
        assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        ours.shutdown().await.unwrap();
        let told = theirs.read(&mut [0; 100]).await.unwrap_err();
        let told = told.get_ref().unwrap().downcast_ref();
        assert_eq!(told, Some(&Error::AlertReceived(AlertDescription::BadRecordMac)));
    }
    // A fatal alert that is one: the peer could not open what we said.
    let (mut ours, mut theirs) = our_client(&configs(SUITES[3]), 1024 * 1024).await;
    ours.io_mut().write_all(&[23, 3, 3, 0, 40]).await.unwrap();
    ours.io_mut().write_all(&[0; 40]).await.unwrap();
    theirs.read(&mut [0; 100]).await.unwrap_err();
    for _ in 0..2 {
        let error = ours.read(&mut [0; 100]).await.unwrap_err();
        let error = error.get_ref().unwrap().downcast_ref();
        assert_eq!(error, Some(&Error::AlertReceived(AlertDescription::BadRecordMac)));
    }
    assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    ours.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_empty_record_that_is_no_data_is_answered_as_unexpected() {
    let (client, server) = configs(SUITES[0]);
    for kind in [kind::HANDSHAKE, kind::ALERT] {
        let (near, far) = duplex(10_000);
        let (mut near, mut far) =
            tokio::try_join!(Stream::connect(near, &client, name()), Stream::accept(far, &server)).unwrap();
        let mut record = Buffer::default();
        far.traffic().say(kind, &[], &mut record).unwrap();
        far.io_mut().write_all(record.filled()).await.unwrap();
        near.read(&mut [0; 100]).await.unwrap_err();
        let told = far.read(&mut [0; 100]).await.unwrap_err();
        let told = told.get_ref().unwrap().downcast_ref();
        assert_eq!(told, Some(&Error::AlertReceived(AlertDescription::UnexpectedMessage)));
    }
}

#[tokio::test]
async fn a_peer_is_told_what_it_did() {
    let (mut ours, mut theirs) = our_client(&configs(SUITES[0]), 1024 * 1024).await;
    theirs.get_mut().0.write_all(&[23, 3, 3, 0, 20]).await.unwrap();
    theirs.get_mut().0.write_all(&[0; 20]).await.unwrap();
    let error = ours.read(&mut [0; 100]).await.unwrap_err();
    assert_eq!(error.get_ref().unwrap().downcast_ref(), Some(&Error::DecryptError));
    let told = theirs.read(&mut [0; 100]).await.unwrap_err();
    let told = told.get_ref().unwrap().downcast_ref();
    assert_eq!(told, Some(&Error::AlertReceived(AlertDescription::BadRecordMac)));
    assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    ours.shutdown().await.unwrap();
}

// === What the peer does wrong ===

fn pair() -> Pair {
    let (client, server) = configs(SUITES[0]);
    Pair::new(&client, &server)
}

/// Records, by their kind and content, and what the client makes of them behind a first "good".
fn outcome(records: &[(u8, &[u8])]) -> Result<Read, Error> {
    let outcomes = [100, 100_000].map(|room| {
        let mut pair = pair();
        pair.say(kind::DATA, b"good");
        for (kind, content) in records {
            pair.say(*kind, content);
        }
        let (heard, outcome) = pair.read(room);
        assert_eq!(&heard[..4], b"good");
        outcome
    });
    let [one, other] = outcomes;
    assert_eq!(one, other, "opened in place or not");
    one
}

const ASKS_FOR_KEY: &[u8] = &[24, 0, 0, 1, 1];

#[test]
fn what_may_not_come_is_refused_by_name() {
    let unexpected = |what: Result<Read, Error>| {
        assert!(matches!(what, Err(Error::InvalidMessage(InvalidMessage::UnexpectedMessage(_)))), "{what:?}");
    };
    // A certificate request, and a client's hello: a second handshake.
    unexpected(outcome(&[(kind::HANDSHAKE, &[13, 0, 0, 0])]));
    unexpected(outcome(&[(kind::HANDSHAKE, &[1, 0, 0, 0])]));
    let kinds = [20, 24, 0x80];
    for kind in kinds {
        let refused = outcome(&[(kind, &[1])]);
        assert_eq!(refused, Err(InvalidMessage::InvalidContentType.into()), "{kind}");
    }
    assert_eq!(
        outcome(&[(kind::HANDSHAKE, &[24, 0, 0, 1, 2])]),
        Err(InvalidMessage::InvalidKeyUpdate.into())
    );
    assert_eq!(outcome(&[(kind::HANDSHAKE, &[24, 0, 0, 0])]), Err(InvalidMessage::InvalidKeyUpdate.into()));
    assert_eq!(
        outcome(&[(kind::HANDSHAKE, &[24, 0, 0, 1, 0, 24])]),
        Err(PeerMisbehaved::KeyEpochWithPendingFragment.into())
    );
    for between in [kind::DATA, kind::ALERT] {
        assert_eq!(
            outcome(&[(kind::HANDSHAKE, &[24, 0]), (between, &[1, 0])]),
            Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into())
        );
    }
    assert_eq!(
        outcome(&[(kind::HANDSHAKE, &[4, 1, 0, 0])]),
        Err(InvalidMessage::HandshakePayloadTooLarge.into())
    );
    assert!(outcome(&[(kind::HANDSHAKE, &[4, 0, 0, 1, 0])]).is_err(), "a ticket that is none");
    for nothing in [kind::HANDSHAKE, kind::ALERT] {
        unexpected(outcome(&[(nothing, &[])]));
    }
    for alert in [&[1][..], &[1, 0, 0]] {
        let refused = outcome(&[(kind::ALERT, alert)]);
        assert!(matches!(refused, Err(Error::InvalidMessage(InvalidMessage::MissingData(_)))), "{refused:?}");
    }
    assert_eq!(outcome(&[(0, &[])]), Err(PeerMisbehaved::IllegalTlsInnerPlaintext.into()));
    let refused = outcome(&[(kind::ALERT, &[2, 40])]);
    assert_eq!(refused, Err(Error::AlertReceived(AlertDescription::HandshakeFailure)));
}

#[test]
fn what_may_come_is_taken() {
    assert_eq!(outcome(&[]), Ok(Read::NeedsMore));
    assert_eq!(outcome(&[(kind::HANDSHAKE, ASKS_FOR_KEY)]), Ok(Read::NeedsMore));
    assert_eq!(
        outcome(&[(kind::HANDSHAKE, &[24, 0, 0]), (kind::HANDSHAKE, &[1]), (kind::HANDSHAKE, &[0])]),
        Ok(Read::NeedsMore)
    );
    assert_eq!(outcome(&[(kind::ALERT, &[1, 90])]), Ok(Read::NeedsMore), "user_canceled");
    // Nothing after the goodbye is looked at.
    assert_eq!(outcome(&[(kind::ALERT, &[1, 0]), (99, b"late")]), Ok(Read::End));
}

#[test]
fn records_without_data_are_limited() {
    // The tickets of the handshake are of the same count, which data ends.
    let most = usize::from(MAX_QUIET);
    // A handshake message that comes byte by byte, behind its head.
    let kinds: [(u8, &[u8], &[u8], Error); 3] = [
        (kind::DATA, &[], &[], PeerMisbehaved::TooManyEmptyFragments.into()),
        (kind::ALERT, &[1, 90], &[1, 90], PeerMisbehaved::TooManyWarningAlertsReceived.into()),
        (kind::HANDSHAKE, &[4, 0, 1, 0], &[0], PeerMisbehaved::TooManyKeyUpdateRequests.into()),
    ];
    for (kind, first, next, refused) in kinds {
        let mut records = vec![(kind, next); most];
        records[0].1 = first;
        assert_eq!(outcome(&records), Ok(Read::NeedsMore), "{kind}");
        records.push((kind, next));
        assert_eq!(outcome(&records), Err(refused), "{kind}");
    }
    let mut pair = pair();
    for _ in 0..3 * most {
        pair.say(kind::DATA, &[]);
        pair.say(kind::DATA, b"x");
    }
    let (heard, outcome) = pair.read(1_000);
    assert_eq!((heard.len(), outcome), (3 * most, Ok(Read::NeedsMore)));
}

#[test]
fn a_changed_record_is_refused() {
    // In the version, the length, the content, the tag.
    for byte in [1, 4, HEAD + 1, HEAD + 20] {
        for room in [2, 1_000] {
            let mut pair = pair();
            pair.read(1_000).1.unwrap();
            pair.say(kind::DATA, b"word");
            pair.line.filled_mut()[byte] ^= 1;
            let (heard, outcome) = pair.read(room);
            assert_eq!(heard, b"");
            assert_eq!(outcome, Err(Error::DecryptError), "{byte}");
        }
    }
}

#[test]
fn the_length_of_a_record_has_limits() {
    let heads: [([u8; HEAD], Error); 5] = [
        ([23, 3, 3, 0x41, 1], Error::PeerSentOversizedRecord),
        ([23, 3, 3, 0, 16], Error::DecryptError),
        ([20, 3, 3, 0, 1], InvalidMessage::InvalidContentType.into()),
        ([21, 3, 3, 0, 2], InvalidMessage::InvalidContentType.into()),
        (*b"GET /", InvalidMessage::InvalidContentType.into()),
    ];
    for (head, refused) in heads {
        let mut pair = pair();
        pair.read(1_000).1.unwrap();
        put(&mut pair.line, &head);
        assert_eq!(pair.read(1_000).1, Err(refused), "{head:?}");
    }
    // The most padding, and one more: the content and its kind are of 2^14 + 1 bytes at most, whatever is sealed.
    for (padded, allowed) in [(MAX_CONTENT, true), (MAX_CONTENT + 1, false)] {
        for room in [100, 100_000] {
            let mut pair = pair();
            pair.read(1_000).1.unwrap();
            let mut content = vec![0; padded];
            content[..2].copy_from_slice(&[b'x', kind::DATA]);
            pair.say(0, &content);
            let expected = if allowed {
                (b"x".to_vec(), Ok(Read::NeedsMore))
            } else {
                (vec![], Err(Error::PeerSentOversizedRecord))
            };
            assert_eq!(pair.read(room), expected);
        }
    }
}

#[test]
fn a_reader_with_room_gets_all_records_at_once_and_another_gets_whole_ones() {
    for (room, reads) in [(100_000, vec![50_000]), (40_000, vec![2 * MAX_CONTENT, 50_000 - 2 * MAX_CONTENT])]
    {
        let mut pair = pair();
        pair.read(1_000).1.unwrap();
        pair.server.seal(&[IoSlice::new(&bytes(50_000))], &mut pair.line).unwrap();
        let mut part = vec![0; room];
        for expected in reads {
            let mut part = ReadBuf::new(&mut part);
            let read = pair.client.read(&mut pair.line, &mut part, &mut Buffer::default());
            assert_eq!((read, part.filled().len()), (Ok(Read::Data), expected));
        }
    }
}

#[test]
fn a_read_opens_no_more_records_than_so_many() {
    let (mut pair, most) = (pair(), usize::from(RECORDS_PER_READ));
    pair.read(1_000).1.unwrap();
    for _ in 0..most + 1 {
        pair.say(kind::DATA, b"x");
    }
    for expected in [most, 1] {
        let mut room = [0; 1_000];
        let mut out = ReadBuf::new(&mut room);
        let read = pair.client.read(&mut pair.line, &mut out, &mut Buffer::default());
        assert_eq!((read, out.filled().len()), (Ok(Read::Data), expected));
    }
}

#[test]
fn a_key_of_the_peer_is_used_from_the_next_record_on() {
    let mut pair = pair();
    pair.server.update_key(&mut pair.line).unwrap();
    pair.say(kind::DATA, b"after");
    assert_eq!(pair.read(1_000), (b"after".to_vec(), Ok(Read::NeedsMore)));
}

#[test]
fn nothing_of_a_stream_can_be_printed() {
    let pair = pair();
    let stream = Stream::of(Layer::Traffic(Box::new(pair.client)));
    assert_eq!(format!("{stream:?}"), "Stream { io: Empty { .. }, .. }");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// What the fuzz target does, with what chance gives.
    #[test]
    fn any_script_is_played(script in prop::collection::vec(any::<u8>(), 0..200)) {
        let (client, server) = configs(SUITES[0]);
        play(&client, &server, &script);
    }

    /// Bytes cut anywhere come through.
    #[test]
    fn pieces_of_any_length_come_through(
        lengths in prop::collection::vec(0_usize..40_000, 0..12),
        room in 1_usize..40_000,
    ) {
        let mut pair = pair();
        let said = bytes(lengths.iter().sum());
        let mut rest = &said[..];
        let pieces: Vec<_> = lengths.iter().map(|length| {
            let (piece, left) = rest.split_at(*length);
            rest = left;
            IoSlice::new(piece)
        }).collect();
        // What the server has to say so far is read first: it seals into an empty buffer.
        pair.read(1_000).1.unwrap();
        let sealed = pair.server.seal(&pieces, &mut pair.line).unwrap();
        prop_assert_eq!(sealed, said.len().min(288 * 1024));
        prop_assert_eq!(pair.line.filled().len(), sealed + sealed.div_ceil(MAX_CONTENT) * OVERHEAD);
        let (heard, outcome) = pair.read(room);
        prop_assert_eq!(outcome, Ok(Read::NeedsMore));
        prop_assert!(heard == said[..sealed]);
    }
}

#[test]
fn the_committed_corpus_holds() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/tls_records");
    let (client, server) = configs(SUITES[0]);
    let mut files = std::fs::read_dir(corpus).unwrap().peekable();
    assert!(files.peek().is_some());
    for file in files {
        play(&client, &server, &std::fs::read(file.unwrap().path()).unwrap());
    }
}
