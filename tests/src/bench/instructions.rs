//! A few instructions of the kernel's machine, put together by hand (RFC 9669).

use std::os::fd::{AsRawFd as _, OwnedFd};

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Register {
    /// What a call returns.
    R0,
    /// First argument.
    R1,
    /// Second argument.
    R2,
    /// Third argument.
    R3,
    /// Fourth argument.
    R4,
    /// Fifth argument.
    R5,
    /// Kept over calls.
    R6,
    /// Kept over calls.
    R7,
    /// Kept over calls.
    R8,
    /// Kept over calls.
    R9,
    /// The frame's end.
    R10,
}

/// How much is loaded or stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
    /// Eight bytes.
    Double,
}

/// A place that jumps lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label(usize);

/// Numbers of helpers (include/uapi/linux/bpf.h).
pub mod helper {
    /// `bpf_map_lookup_elem`.
    pub const LOOKUP: i32 = 1;
    /// `bpf_get_prandom_u32`.
    pub const RANDOM: i32 = 7;
    /// `bpf_tail_call`.
    pub const TAIL_CALL: i32 = 12;
}

/// A program being put together.
#[derive(Debug, Default)]
pub struct Instructions {
    words: Vec<u64>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

const IMMEDIATE: u8 = 0x00;
const SOURCE: u8 = 0x08;
const JUMP: u8 = 0x05;
const ARITHMETIC_32: u8 = 0x04;
const ARITHMETIC_64: u8 = 0x07;
const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
/// `BPF_PSEUDO_MAP_FD`.
const OF_TABLE: u8 = 1;

impl Instructions {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A label that is put somewhere later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts a label here.
    pub fn here(&mut self, label: Label) -> &mut Self {
        let at = self.words.len();
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = Some(at);
        }
        self
    }

    /// `to = value`.
    pub fn set(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(0xb0 | ARITHMETIC_64 | IMMEDIATE, to, Register::R0, 0, value)
    }

    /// `to = from`.
    pub fn copy(&mut self, to: Register, from: Register) -> &mut Self {
        self.push(0xb0 | ARITHMETIC_64 | SOURCE, to, from, 0, 0)
    }

    /// `to += value`.
    pub fn add(&mut self, to: Register, value: i32) -> &mut Self {
        self.push(ARITHMETIC_64 | IMMEDIATE, to, Register::R0, 0, value)
    }

    /// `to &= value`, 32 bits.
    pub fn and(&mut self, to: Register, value: u32) -> &mut Self {
        self.push(0x50 | ARITHMETIC_32, to, Register::R0, 0, value as i32)
    }

    /// `to |= value`, 32 bits.
    pub fn or(&mut self, to: Register, value: u32) -> &mut Self {
        self.push(0x40 | ARITHMETIC_32, to, Register::R0, 0, value as i32)
    }

    /// `to %= value`, 32 bits.
    pub fn modulo(&mut self, to: Register, value: u32) -> &mut Self {
        self.push(0x90 | ARITHMETIC_32, to, Register::R0, 0, value as i32)
    }

    /// `to = *(from + offset)`.
    pub fn load(&mut self, size: Size, to: Register, from: Register, offset: i16) -> &mut Self {
        self.push(LOAD & !0x18 | size.bits(), to, from, offset, 0)
    }

    /// `*(to + offset) = from`.
    pub fn store(&mut self, size: Size, to: Register, offset: i16, from: Register) -> &mut Self {
        self.push(STORE & !0x18 | size.bits(), to, from, offset, 0)
    }

    /// `to` becomes the table's address, as helpers want it. The table must outlive the loading.
    pub fn table(&mut self, to: Register, table: &OwnedFd) -> &mut Self {
        let source = (OF_TABLE << 4) | to as u8;
        let fd = u64::from(table.as_raw_fd() as u32) << 32;
        self.words.push(fd | u64::from(source) << 8 | 0x18);
        self.words.push(0);
        self
    }

    /// Calls a helper of [`helper`].
    pub fn call(&mut self, number: i32) -> &mut Self {
        self.push(0x80 | JUMP, Register::R0, Register::R0, 0, number)
    }

    /// Jumps if `left` is 0.
    pub fn if_zero(&mut self, left: Register, to: Label) -> &mut Self {
        self.jumps.push((self.words.len(), to));
        self.push(0x10 | JUMP | IMMEDIATE, left, Register::R0, 0, 0)
    }

    /// Jumps if `left > right`.
    pub fn if_greater(&mut self, left: Register, right: Register, to: Label) -> &mut Self {
        self.jumps.push((self.words.len(), to));
        self.push(0x20 | JUMP | SOURCE, left, right, 0, 0)
    }

    /// Returns what is in [`Register::R0`].
    pub fn exit(&mut self) -> &mut Self {
        self.push(0x90 | JUMP, Register::R0, Register::R0, 0, 0)
    }

    /// The program's words, jumps led to their labels.
    ///
    /// # Panics
    /// When a jump leads to a label that was never put anywhere.
    #[must_use]
    pub fn words(&self) -> Vec<u64> {
        let mut words = self.words.clone();
        for (at, Label(label)) in &self.jumps {
            let target = self.labels.get(*label).copied().flatten();
            let target = target.unwrap_or_else(|| panic!("label {label} is nowhere"));
            let distance = (target as i64 - *at as i64 - 1) as i16 as u16;
            if let Some(word) = words.get_mut(*at) {
                *word |= u64::from(distance) << 16;
            }
        }
        words
    }

    fn push(
        &mut self,
        code: u8,
        to: Register,
        from: Register,
        offset: i16,
        value: i32,
    ) -> &mut Self {
        let registers = (from as u64) << 4 | to as u64;
        self.words.push(
            u64::from(value as u32) << 32
                | u64::from(offset as u16) << 16
                | registers << 8
                | u64::from(code),
        );
        self
    }
}

impl Size {
    const fn bits(self) -> u8 {
        match self {
            Self::Half => 0x08,
            Self::Word => 0x00,
            Self::Double => 0x18,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in RFC 9669, section 3.1 and appendix A: code, registers, offset, immediate.
    #[test]
    fn words_are_encoded_as_the_standard_says() {
        let mut program = Instructions::new();
        let end = program.label();
        program
            .set(Register::R0, -1)
            .load(Size::Word, Register::R2, Register::R1, 76)
            .if_zero(Register::R2, end)
            .store(Size::Double, Register::R10, -8, Register::R2)
            .here(end)
            .exit();
        assert_eq!(
            program.words(),
            [
                0xffff_ffff_0000_00b7,
                0x0000_0000_004c_1261,
                0x0000_0000_0001_0215,
                0x0000_0000_fff8_2a7b,
                0x0000_0000_0000_0095,
            ]
        );
    }
}
