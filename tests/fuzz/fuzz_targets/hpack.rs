//! HPACK: the decoder never panics, keeps its limit, agrees with another decoder on what both take, and reads what our
//! encoder writes.
#![no_main]

mod support;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use hivemind_worker::h2::hpack::{DecodeError, Decoder, Encoder, huffman};
use hivemind_worker::h2::{Header, Indexing};
use libfuzzer_sys::fuzz_target;
use support::Input;

const LIMIT: usize = 16 * 1024;

thread_local! {
    /// The other decoder runs, whose panics are not ours: the single byte 3f is one.
    static IS_FENCED: Cell<bool> = const { Cell::new(false) };
}

/// The fuzzer's hook ends the process at each panic; those of the other decoder must not.
fn fence_hook() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_FENCED.get() {
                before(info);
            }
        }));
    });
}

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// `None` when it panics, after which its state is of no use.
fn other_decode(other: &mut loona_hpack::Decoder<'_>, block: &[u8]) -> Option<Result<Fields, String>> {
    IS_FENCED.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| other.decode(block).map_err(|e| format!("{e:?}"))));
    IS_FENCED.set(false);
    Some(result.ok()?.map(|fields| fields.into_iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect()))
}

/// What we refuse on purpose and others may take.
fn is_stricter(error: &DecodeError) -> bool {
    match error {
        DecodeError::TooLarge => true,
        DecodeError::Compression(reason) => {
            ["integer", "table size update", "Huffman"].iter().any(|r| reason.contains(r))
        }
    }
}

/// What must survive: an index may take the place of a literal, but not of one that must never have an index.
fn told(fields: &[Header]) -> Vec<(&[u8], &[u8], bool)> {
    fields.iter().map(|f| (&f.name[..], &f.value[..], f.indexing == Indexing::Never)).collect()
}

fn check_blocks(mut input: Input<'_>) {
    let (mut ours, mut other, mut encoder) =
        (Decoder::new(4096, LIMIT), loona_hpack::Decoder::new(), Encoder::default());
    let (mut reader, mut compares) = (Decoder::new(4096, LIMIT), true);
    other.set_max_allowed_table_size(4096);
    while !input.is_empty() {
        let length = usize::from(input.byte()) * 4;
        let block = input.bytes(length);
        let result = ours.decode(block);
        let theirs = if compares { other_decode(&mut other, block) } else { None };
        compares = matches!(theirs, Some(Ok(_)));
        let fields = match (result, theirs) {
            (Ok(fields), Some(Ok(theirs))) => {
                let plain: Fields = fields.iter().map(|f| (f.name.to_vec(), f.value.to_vec())).collect();
                assert_eq!(plain, theirs);
                fields
            }
            // It takes no block of size updates alone, about which the standard says nothing.
            (Ok(fields), Some(Err(error))) if error.contains("SizeUpdateAtEnd") && fields.is_empty() => fields,
            (Ok(_), Some(Err(error))) => panic!("only we take it; the other: {error}"),
            (Ok(fields), None) => fields,
            (Err(error), Some(Ok(_))) if !is_stricter(&error) => panic!("only we refuse it: {error:?}"),
            (Err(_), _) => return,
        };
        assert!(fields.iter().map(Header::size).sum::<usize>() <= LIMIT);
        let mut written = Vec::new();
        encoder.encode(&fields, &mut written);
        assert_eq!(told(&reader.decode(&written).unwrap()), told(&fields), "what we write is what we read");
    }
}

fuzz_target!(|data: &[u8]| {
    fence_hook();
    let mut input = Input(data);
    if input.byte() & 1 == 1 {
        let (mut out, mut plain) = (Vec::new(), Vec::new());
        huffman::encode(input.0, &mut out);
        assert_eq!(out.len(), huffman::encoded_len(input.0));
        huffman::decode(&out, &mut plain).unwrap();
        assert_eq!(plain, input.0);
        let mut any = Vec::new();
        if huffman::decode(input.0, &mut any).is_ok() {
            out.clear();
            huffman::encode(&any, &mut out);
            assert_eq!(out, input.0, "each string has one code");
        }
        return;
    }
    check_blocks(input);
});
