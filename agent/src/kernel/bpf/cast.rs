//! Has the programs read the state of a packet's checksum in place.
//!
//! The kernel's function `bpf_cast_to_kern_ctx` shows a program the structure behind its argument, at
//! no cost. aya knows helpers only, which have the same number everywhere. A function of the
//! kernel's has a number of its own in each kernel, and its call says that it is one (RFC 9669,
//! 4.3.1). So the instructions are exchanged in the object before aya reads it.

use gate25_common::names;

use super::skb::SkbAccess;

/// Bytes of an instruction.
const INSTRUCTION: usize = 8;
const COUNT: usize = names::CAST.len();
/// `call` of a kernel's function.
const CALL: u64 = 0x2085;
/// `r0 = *(u8 *)(r0 + offset)`.
const LOAD_BYTE: u64 = 0x71;
/// `r0 &= number`.
const AND: u64 = 0x57;
/// `r0 ^= number`.
const XOR: u64 = 0xa7;

/// An object file, aligned as it is read.
pub(super) struct ObjectFile {
    bytes: Vec<u8>,
    begin: usize,
}

impl ObjectFile {
    fn new(file: &[u8]) -> Self {
        let mut bytes = vec![0; file.len() + INSTRUCTION];
        let begin = bytes.as_ptr().align_offset(INSTRUCTION).min(INSTRUCTION);
        let (_, rest) = bytes.split_at_mut(begin);
        for (to, from) in rest.iter_mut().zip(file) {
            *to = *from;
        }
        bytes.truncate(begin + file.len());
        Self { bytes, begin }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.begin..).unwrap_or_default()
    }
}

/// The object that looks whether a checksum is to come, if it can on this kernel.
pub(super) fn led(object: &[u8], access: &SkbAccess) -> ObjectFile {
    let mut file = ObjectFile::new(object);
    if let (Some(function), true) = (access.cast, access.layout.is_known()) {
        let body = file.bytes.get_mut(file.begin..).unwrap_or_default();
        let partial = 3u64 << access.layout.summed_shift();
        let looking = [
            u64::from(function) << 32 | CALL,
            (access.layout.summed() as u64) << 16 | LOAD_BYTE,
            partial << 32 | AND,
            partial << 32 | XOR,
        ];
        exchange(body, &looking);
    }
    file
}

/// Puts other instructions in the place of [`names::CAST`]. Sections of code begin at multiples of an
/// instruction's length (bpf-linker).
fn exchange(object: &mut [u8], new: &[u64; COUNT]) {
    let mut at = 0;
    while let Some(found) = object.get_mut(at..at + COUNT * INSTRUCTION) {
        let (words, _) = found.as_chunks_mut::<INSTRUCTION>();
        if words
            .iter()
            .zip(names::CAST)
            .all(|(word, old)| *word == old.to_le_bytes())
        {
            for (word, new) in words.iter_mut().zip(new) {
                *word = new.to_le_bytes();
            }
        }
        at += INSTRUCTION;
    }
}

#[cfg(test)]
mod tests {
    use gate25_common::abi::SkbLayout;

    use super::*;

    #[test]
    fn exchange_changes_the_marked_instructions_and_nothing_else() {
        let bytes = |words: &[u64]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let [mark, and, other, xor] = names::CAST;
        let mut object = bytes(&[0x95, mark, and, other, xor, mark, and, 0x95]);
        exchange(&mut object, &[1, 2, 3, 4]);
        assert_eq!(object, bytes(&[0x95, 1, 2, 3, 4, mark, and, 0x95]));
    }

    #[test]
    fn led_looks_at_the_two_bits_of_the_kernels_structure() {
        let object: Vec<u8> = names::CAST
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let access = SkbAccess {
            layout: SkbLayout::new(128, 5, 136, 192).unwrap(),
            cast: Some(63_548),
        };
        // As an assembler writes it: call, load at 128, and with 0x60, exclusive or with 0x60.
        let looking = [
            [0x85, 0x20, 0, 0, 0x3c, 0xf8, 0, 0],
            [0x71, 0, 0x80, 0, 0, 0, 0, 0],
            [0x57, 0, 0, 0, 0x60, 0, 0, 0],
            [0xa7, 0, 0, 0, 0x60, 0, 0, 0],
        ];
        assert_eq!(led(&object, &access).bytes(), looking.concat());
        let without = SkbAccess {
            cast: None,
            ..access
        };
        assert_eq!(led(&object, &without).bytes(), object);
    }

    #[test]
    fn object_file_is_aligned_and_whole() {
        let file = ObjectFile::new(&[7; 1001]);
        assert_eq!(file.bytes(), [7; 1001]);
        assert_eq!(file.bytes().as_ptr().align_offset(INSTRUCTION), 0);
    }
}
