//! Leads the programs' calls of [`names::CAST`] to the kernel's function.
//!
//! aya knows helpers only, which have the same number everywhere. A function of the kernel's has a
//! number of its own in each kernel, and the call says that it is one (RFC 9669, 4.3.1).

use gate25_common::names;

use super::skb::SkbAccess;

/// Bytes of an instruction.
const INSTRUCTION: usize = 8;
/// `call` of a helper by number, and of a kernel function: the number comes behind these.
const CALL_HELPER: [u8; 4] = [0x85, 0, 0, 0];
const CALL_FUNCTION: [u8; 4] = [0x85, 0x20, 0, 0];
/// `r0 = *(u8 *)(r0 + 0)`; the offset is in the bytes 2 and 3.
const LOAD_BYTE: [u8; INSTRUCTION] = [0x71, 0, 0, 0, 0, 0, 0, 0];

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

/// The object with its calls led to the kernel's function, where there is one.
pub(super) fn led(object: &[u8], access: &SkbAccess) -> ObjectFile {
    let mut file = ObjectFile::new(object);
    if let Some(function) = access.cast {
        let body = file.bytes.get_mut(file.begin..).unwrap_or_default();
        lead(body, function, access.layout.summed());
    }
    file
}

/// Sections of code begin at multiples of an instruction's length (bpf-linker).
fn lead(object: &mut [u8], function: u32, summed: usize) {
    let mut placeholder = [0; INSTRUCTION];
    placeholder[..4].copy_from_slice(&CALL_HELPER);
    placeholder[4..].copy_from_slice(&names::CAST.to_le_bytes());
    let mut at = 0;
    while let Some(pair) = object.get_mut(at..at + 2 * INSTRUCTION) {
        let (call, load) = pair.split_at_mut(INSTRUCTION);
        if call == placeholder && load == LOAD_BYTE {
            call[..4].copy_from_slice(&CALL_FUNCTION);
            call[4..].copy_from_slice(&function.to_le_bytes());
            load[2..4].copy_from_slice(&(summed as u16).to_le_bytes());
        }
        at += INSTRUCTION;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lead_changes_the_call_and_the_load_behind_it_and_nothing_else() {
        let call = [0x85, 0, 0, 0, 0x65, 0x74, 0x61, 0x67];
        let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
        let mut object = [exit, call, LOAD_BYTE, call, exit].concat();
        lead(&mut object, 0x0102_0304, 0x80);
        let led = [0x85, 0x20, 0, 0, 4, 3, 2, 1];
        let load = [0x71, 0, 0x80, 0, 0, 0, 0, 0];
        assert_eq!(object, [exit, led, load, call, exit].concat());
    }

    #[test]
    fn object_file_is_aligned_and_whole() {
        let file = ObjectFile::new(&[7; 1001]);
        assert_eq!(file.bytes(), [7; 1001]);
        assert_eq!(file.bytes().as_ptr().align_offset(INSTRUCTION), 0);
    }
}
