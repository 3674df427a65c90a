//! The examples of RFC 7541 appendix C.2 to C.6, each by its section: the fields, the dynamic table after each block, and
//! what our encoder makes of the same fields. Those of C.1, the integers, are beside the decoder.

use super::*;

const LIMIT: usize = 16 * 1024;

type Fields<'a> = &'a [(&'a str, &'a str)];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

fn plain(fields: &[Header]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    fields.iter().map(|f| (text(&f.name), text(&f.value))).collect()
}

fn owned(fields: Fields<'_>) -> Vec<(String, String)> {
    fields.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect()
}

/// Decodes a block and compares the fields, and the dynamic table with its size, newest entry first.
fn check(decoder: &mut Decoder, block: &str, fields: Fields<'_>, table: Fields<'_>, size: usize) {
    assert_eq!(plain(&decoder.decode(&hex(block)).unwrap()), owned(fields));
    // Naming the entries by their indexes changes nothing.
    let count = u8::try_from(table.len()).unwrap();
    let entries = decoder.decode(&(0..count).map(|i| 0xbe + i).collect::<Vec<u8>>()).unwrap();
    assert_eq!(plain(&entries), owned(table));
    assert_eq!(entries.iter().map(Header::size).sum::<usize>(), size);
}

/// What our encoder writes, given that all may be indexed.
fn encoded(encoder: &mut Encoder, fields: Fields<'_>) -> Vec<u8> {
    let fields: Vec<Header> = fields.iter().map(|(n, v)| Header::new(*n, *v)).collect();
    let mut out = Vec::new();
    encoder.encode(&fields, &mut out);
    out
}

#[test]
fn appendix_c_2_1_literal_with_indexing() {
    let field = [("custom-key", "custom-header")];
    let block = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    check(&mut Decoder::new(4096, LIMIT), block, &field, &field, 55);
}

#[test]
fn appendix_c_2_2_literal_without_indexing() {
    let block = "040c 2f73 616d 706c 652f 7061 7468";
    check(&mut Decoder::new(4096, LIMIT), block, &[(":path", "/sample/path")], &[], 0);
}

#[test]
fn appendix_c_2_3_literal_never_indexed() {
    let block = "1008 7061 7373 776f 7264 0673 6563 7265 74";
    let mut decoder = Decoder::new(4096, LIMIT);
    check(&mut decoder, block, &[("password", "secret")], &[], 0);
    assert_eq!(decoder.decode(&hex(block)).unwrap(), [Header::sensitive("password", "secret")]);
}

#[test]
fn appendix_c_2_4_indexed() {
    check(&mut Decoder::new(4096, LIMIT), "82", &[(":method", "GET")], &[], 0);
}

const AUTHORITY: (&str, &str) = (":authority", "www.example.com");
const CACHE: (&str, &str) = ("cache-control", "no-cache");
const CUSTOM: (&str, &str) = ("custom-key", "custom-value");
const FIRST: Fields<'_> = &[(":method", "GET"), (":scheme", "http"), (":path", "/"), AUTHORITY];
const SECOND: Fields<'_> = &[(":method", "GET"), (":scheme", "http"), (":path", "/"), AUTHORITY, CACHE];
const THIRD: Fields<'_> = &[(":method", "GET"), (":scheme", "https"), (":path", "/index.html"), AUTHORITY, CUSTOM];

/// The three requests of C.3 or C.4, up to this one.
fn check_requests(blocks: [&str; 3], upto: usize) {
    let tables: [(Fields<'_>, usize); 3] =
        [(&[AUTHORITY], 57), (&[CACHE, AUTHORITY], 110), (&[CUSTOM, CACHE, AUTHORITY], 164)];
    let mut decoder = Decoder::new(4096, LIMIT);
    for ((block, fields), (table, size)) in blocks.iter().zip([FIRST, SECOND, THIRD]).zip(tables).take(upto) {
        check(&mut decoder, block, fields, table, size);
    }
}

const PLAIN_REQUESTS: [&str; 3] = [
    "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
    "8286 84be 5808 6e6f 2d63 6163 6865",
    "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
];

#[test]
fn appendix_c_3_1_first_request() {
    check_requests(PLAIN_REQUESTS, 1);
}

#[test]
fn appendix_c_3_2_second_request() {
    check_requests(PLAIN_REQUESTS, 2);
}

#[test]
fn appendix_c_3_3_third_request() {
    check_requests(PLAIN_REQUESTS, 3);
}

const CODED_REQUESTS: [&str; 3] = [
    "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
    "8286 84be 5886 a8eb 1064 9cbf",
    "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
];

/// Those are what our encoder writes too.
fn check_coded_requests(upto: usize) {
    check_requests(CODED_REQUESTS, upto);
    let mut encoder = Encoder::default();
    for (block, fields) in CODED_REQUESTS.iter().zip([FIRST, SECOND, THIRD]).take(upto) {
        assert_eq!(encoded(&mut encoder, fields), hex(block));
    }
}

#[test]
fn appendix_c_4_1_first_request_with_huffman() {
    check_coded_requests(1);
}

#[test]
fn appendix_c_4_2_second_request_with_huffman() {
    check_coded_requests(2);
}

#[test]
fn appendix_c_4_3_third_request_with_huffman() {
    check_coded_requests(3);
}

const PRIVATE: (&str, &str) = ("cache-control", "private");
const DATE_21: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
const DATE_22: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:22 GMT");
const PLACE: (&str, &str) = ("location", "https://www.example.com");
const GZIP: (&str, &str) = ("content-encoding", "gzip");
const COOKIE: (&str, &str) = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
const RESPONSES: [Fields<'_>; 3] = [
    &[(":status", "302"), PRIVATE, DATE_21, PLACE],
    &[(":status", "307"), PRIVATE, DATE_21, PLACE],
    &[(":status", "200"), PRIVATE, DATE_22, PLACE, GZIP, COOKIE],
];

/// The three responses of C.5 or C.6, up to this one, in a table of 256 bytes that evicts.
fn check_responses(blocks: [&str; 3], upto: usize) {
    let tables: [(Fields<'_>, usize); 3] = [
        (&[PLACE, DATE_21, PRIVATE, (":status", "302")], 222),
        (&[(":status", "307"), PLACE, DATE_21, PRIVATE], 222),
        (&[COOKIE, GZIP, DATE_22], 215),
    ];
    let mut decoder = Decoder::new(256, LIMIT);
    for ((block, fields), (table, size)) in blocks.iter().zip(RESPONSES).zip(tables).take(upto) {
        check(&mut decoder, block, fields, table, size);
    }
}

const PLAIN_RESPONSES: [&str; 3] = [
    "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 546e \
     1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
    "4803 3330 37c1 c0bf",
    "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f 6f3d \
     4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 \
     7369 6f6e 3d31",
];

#[test]
fn appendix_c_5_1_first_response() {
    check_responses(PLAIN_RESPONSES, 1);
}

#[test]
fn appendix_c_5_2_second_response() {
    check_responses(PLAIN_RESPONSES, 2);
}

#[test]
fn appendix_c_5_3_third_response() {
    check_responses(PLAIN_RESPONSES, 3);
}

const CODED_RESPONSES: [&str; 3] = [
    "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b \
     97c8 e9ae 82ae 43d3",
    "4883 640e ffc1 c0bf",
    "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf \
     cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
];

/// Those are what our encoder writes too, behind the update to 256 bytes that the peer's setting asks for; but it writes
/// «307» as it is, as in C.5.2, where Huffman code makes it no shorter.
fn check_coded_responses(upto: usize) {
    check_responses(CODED_RESPONSES, upto);
    let mut encoder = Encoder::default();
    encoder.set_peer_table_size(256);
    assert_eq!(encoded(&mut encoder, &[]), [0x3f, 0xe1, 0x01]);
    let ours = [CODED_RESPONSES[0], PLAIN_RESPONSES[1], CODED_RESPONSES[2]];
    for (block, fields) in ours.iter().zip(RESPONSES).take(upto) {
        assert_eq!(encoded(&mut encoder, fields), hex(block));
    }
}

#[test]
fn appendix_c_6_1_first_response_with_huffman() {
    check_coded_responses(1);
}

#[test]
fn appendix_c_6_2_second_response_with_huffman() {
    check_coded_responses(2);
}

#[test]
fn appendix_c_6_3_third_response_with_huffman() {
    check_coded_responses(3);
}
