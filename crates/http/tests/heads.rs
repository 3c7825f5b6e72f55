//! Bad heads, each by the number of its case: refused in one answer, which ends the connection, and never dialled for.

mod play;

use play::Stage;

#[tokio::test]
async fn h2_a_request_has_one_host_and_a_good_one() {
    refused(
        &["400"],
        &[
            "GET http://t/ HTTP/1.1\r\n\r\n",
            "GET http://t/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET http://t/ HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET http://t/ HTTP/1.1\r\nHost: u@a\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn h3_what_is_asked_of_the_proxy_itself_or_of_https_is_not_forwarded() {
    refused(
        &["400", "501"],
        &["GET / HTTP/1.1\r\nHost: t\r\n\r\n", "GET https://t/ HTTP/1.1\r\nHost: t\r\n\r\n"],
    )
    .await;
}

#[tokio::test]
async fn h4_connect_names_a_host_and_a_port() {
    refused(
        &["400"],
        &[
            "CONNECT / HTTP/1.1\r\nHost: t\r\n\r\n",
            "CONNECT * HTTP/1.1\r\nHost: t\r\n\r\n",
            "CONNECT http://h HTTP/1.1\r\nHost: t\r\n\r\n",
            "CONNECT h HTTP/1.1\r\nHost: t\r\n\r\n",
            "CONNECT h:0 HTTP/1.1\r\nHost: t\r\n\r\n",
            "CONNECT h:65536 HTTP/1.1\r\nHost: t\r\n\r\n",
            "CONNECT h:+443 HTTP/1.1\r\nHost: t\r\n\r\n",
            "CONNECT u@h:443 HTTP/1.1\r\nHost: t\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn h6_other_codings_than_one_chunked_are_refused() {
    refused(
        &["400", "501"],
        &[
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked,\r\n\r\n",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: ,chunked\r\n\r\n",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: identity\r\n\r\n",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding:\x0bchunked\r\n\r\n",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chun\0ked\r\n\r\n",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn h7_a_length_is_a_number_and_one() {
    refused(
        &["400"],
        &[
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: +5\r\n\r\nhello",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 0x5\r\n\r\nhello",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5_0\r\n\r\nhello",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\nhello",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length:\r\n\r\nhello",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 12345678901234567890\r\n\r\nhello",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5, 6\r\n\r\nhello",
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        ],
    )
    .await;
}

#[tokio::test]
async fn h10_a_field_is_a_name_a_colon_and_a_value_on_one_line() {
    refused(
        &["400"],
        &[
            "GET http://t/ HTTP/1.1\r\nHost: t\r\nA : b\r\n\r\n",
            "GET http://t/ HTTP/1.1\r\nHost: t\r\n: b\r\n\r\n",
            "GET http://t/ HTTP/1.1\r\nHost: t\r\nA: b\0\r\n\r\n",
            "GET http://t/ HTTP/1.1\r\nHost: t\r\nA: b\rc\r\n\r\n",
            "GET http://t/ HTTP/1.1\r\nHost: t\r\nA: b\r\n c\r\n\r\n",
            "GET http://t/ HTTP/1.1\r\nHost: t\r\nno colon\r\n\r\n",
            "GET http://t/ HTTP/1.1\r\n Host: t\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn h11_versions_that_are_none_are_refused_and_1_0_has_no_coding() {
    refused(
        &["400", "505"],
        &[
            "POST http://t/ HTTP/1.0\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET http://t/ HTTP/1.32\r\nHost: t\r\n\r\n",
            "GET http://t/ HTTP/2.0\r\nHost: t\r\n\r\n",
            "GET http://t/\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn h17_an_expectation_nobody_knows_is_refused() {
    refused(&["417"], &["GET http://t/ HTTP/1.1\r\nHost: t\r\nExpect: miracles\r\n\r\n"]).await;
}

/// The front answers each with one of these codes, and reads nothing behind it.
async fn refused(codes: &[&str], heads: &[&str]) {
    for head in heads {
        let stage = Stage::open();
        let mut user = stage.user();
        user.say(head).await;
        user.say("GET http://t.lan/x HTTP/1.1\r\nHost: t.lan\r\n\r\n").await;
        let answer = tokio::select! {
            answer = user.rest() => answer,
            target = stage.target() => panic!("{head:?} was forwarded to {}", target.name),
        };
        assert!(codes.contains(&answer.get(9..12).unwrap_or_default()), "{head:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{head:?}: {answer:?}");
        assert_eq!(stage.dials(), 0, "{head:?}");
    }
}
