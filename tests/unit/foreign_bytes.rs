//! Every parser of foreign bytes takes its seeds and what becomes of them: no panic, no endless loop, and what is read obeys the law of
//! its format. The same doors are open to the coverage-guided targets in `fuzz/`; an input that one of them found becomes a seed here.

use onnx_graft::fuzz;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Mutations of each parser's seeds. `MUTATIONS` asks for more.
const MUTATIONS: u64 = 2_000;

/// Numbers at which lengths and offsets go wrong.
const EDGES: [u64; 8] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX >> 1,
];

/// Draws numbers from a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    /// A range of at most 64 of `len` bytes.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        let size = self.below(64.min(len - start) + 1);
        start..start + size
    }
}

/// Changes some bytes, or moves, repeats, drops or takes in some.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], draw: &mut Draw) {
    for _ in 0..=draw.below(4) {
        let range = draw.range(bytes.len());
        match draw.below(8) {
            0 if !bytes.is_empty() => {
                let at = draw.below(bytes.len());
                bytes[at] ^= 1 << draw.below(8);
            }
            1 if !bytes.is_empty() => {
                let at = draw.below(bytes.len());
                bytes[at] = draw.below(256) as u8;
            }
            2 => {
                let edge = EDGES[draw.below(EDGES.len())].to_le_bytes();
                let end = (range.start + [1, 2, 4, 8][draw.below(4)]).min(bytes.len());
                let size = end - range.start;
                bytes[range.start..end].copy_from_slice(&edge[..size]);
            }
            3 => drop(bytes.drain(range)),
            4 => {
                let copy = bytes[range].to_vec();
                let at = draw.below(bytes.len() + 1);
                bytes.splice(at..at, copy);
            }
            5 => {
                let taken = other[draw.range(other.len())].to_vec();
                bytes.splice(range, taken);
            }
            6 => bytes.truncate(range.end),
            _ => {
                let digits = EDGES[draw.below(EDGES.len())].to_string();
                bytes.splice(range.start..range.start, digits.into_bytes());
            }
        }
    }
}

/// Sends the seeds of a parser, and mutations of them, through its door.
fn knock(name: &str, door: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/seeds")
        .join(name);
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|f| fs::read(f).unwrap()).collect();
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let mutations = std::env::var("MUTATIONS").map_or(MUTATIONS, |n| n.parse().unwrap());
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    let mutated = (0..mutations as usize).map(|i| {
        let mut bytes = seeds[i % seeds.len()].clone();
        let other = draw.below(seeds.len());
        mutate(&mut bytes, &seeds[other], &mut draw);
        bytes
    });
    for bytes in seeds.iter().cloned().chain(mutated) {
        let through = catch_unwind(AssertUnwindSafe(|| door(&bytes)));
        assert!(through.is_ok(), "{name}: b\"{}\"", bytes.escape_ascii());
    }
}

macro_rules! doors {
    ($($(#[$only:meta])* $door:ident),* $(,)?) => {$(
        $(#[$only])*
        #[test]
        fn $door() {
            knock(stringify!($door), fuzz::$door);
        }
    )*};
}

doors! {
    #[cfg(feature = "train")]
    card,
    config,
    interface,
    #[cfg(feature = "train")]
    job,
    peft,
    #[cfg(feature = "train")]
    rows,
    safetensors,
    served,
    #[cfg(feature = "train")]
    template,
    text,
    torch_file,
    wire,
}
