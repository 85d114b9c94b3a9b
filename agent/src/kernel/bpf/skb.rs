//! Where the running kernel keeps what its packets' checksums are still to be written into.
//!
//! Programs see no such thing in `__sk_buff`; its place in `struct sk_buff` is in the kernel's own
//! type information (BTF, Documentation/bpf/btf.rst).

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported};
use gate25_common::abi::SkbLayout;

/// The running kernel's type information.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const TYPE_RECORD: usize = 12;
const MEMBER_RECORD: usize = 12;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FUNCTION: u32 = 12;
const CAST_FUNCTION: &str = "bpf_cast_to_kern_ctx";
/// Anonymous structs within structs that are looked through.
const MAX_NESTING: u32 = 8;

/// Why the layout is not known.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The type information cannot be read.
    #[error("read the kernel's type information from {KERNEL_BTF}")]
    Read(#[source] io::Error),
    /// The type information is not in the form that is known.
    #[error("the kernel's type information has an unknown form")]
    Form,
    /// The structure lacks a member, or has it where the programs do not look.
    #[error("the kernel's struct sk_buff has {0} in no place that the programs can read")]
    Member(&'static str),
    /// The place is known, and programs may not read there: before Linux 6.2 that takes a helper, which a
    /// kernel in lockdown for confidentiality refuses (kernel_lockdown(7)).
    #[error("the kernel lets no program read its memory")]
    Locked,
    /// Nobody knows whether they may.
    #[error("ask the kernel whether programs may read its memory")]
    Probe(#[source] ProgramError),
}

/// How programs get at the state of a packet's checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SkbAccess {
    /// Where it is.
    pub layout: SkbLayout,
    /// The number of the kernel's function that shows programs the structure itself (6.2).
    pub cast: Option<u32>,
}

impl SkbAccess {
    /// The kernel does not tell.
    pub const UNKNOWN: Self = Self {
        layout: SkbLayout::UNKNOWN,
        cast: None,
    };
}

/// Reads the type information of the running kernel, and tries whether programs may use it.
///
/// # Errors
///
/// [`LayoutError`].
pub fn running_kernel() -> Result<SkbAccess, LayoutError> {
    let btf = fs::read(Path::new(KERNEL_BTF)).map_err(LayoutError::Read)?;
    let access = access(&btf)?;
    let helper = BpfHelper::BPF_FUNC_probe_read_kernel;
    let readable = access.cast.is_some()
        || is_helper_supported(ProgramType::SchedClassifier, helper).map_err(LayoutError::Probe)?;
    match readable {
        true => Ok(access),
        false => Err(LayoutError::Locked),
    }
}

/// What `btf`, in the machine's byte order, says.
///
/// # Errors
///
/// [`LayoutError::Form`], [`LayoutError::Member`].
pub fn access(btf: &[u8]) -> Result<SkbAccess, LayoutError> {
    let types = Types::parse(btf).ok_or(LayoutError::Form)?;
    Ok(SkbAccess {
        layout: layout_of(&types)?,
        cast: types.function(CAST_FUNCTION),
    })
}

fn layout_of(types: &Types<'_>) -> Result<SkbLayout, LayoutError> {
    let skb = types.structure("sk_buff").ok_or(LayoutError::Form)?;
    let mut members = BTreeMap::new();
    types
        .members(skb, 0, MAX_NESTING, &mut members)
        .ok_or(LayoutError::Form)?;
    let place = |name: &'static str| {
        members
            .get(name.as_bytes())
            .copied()
            .ok_or(LayoutError::Member(name))
    };
    let bytes = |name: &'static str| {
        let bits = place(name)?;
        u16::try_from(bits / 8).map_err(|_beyond| LayoutError::Member(name))
    };
    let (head, data) = (bytes("head")?, bytes("data")?);
    if usize::from(data) != usize::from(head) + size_of::<u64>() {
        return Err(LayoutError::Member("data"));
    }
    let (start, offset) = (bytes("csum_start")?, bytes("csum_offset")?);
    if usize::from(offset) != usize::from(start) + size_of::<u16>() {
        return Err(LayoutError::Member("csum_offset"));
    }
    let shift = (place("ip_summed")? % 8) as u8;
    SkbLayout::new(bytes("ip_summed")?, shift, start, head).ok_or(LayoutError::Member("ip_summed"))
}

/// Types by their number, and the names that they use.
struct Types<'b> {
    records: Vec<&'b [u8]>,
    names: &'b [u8],
}

impl<'b> Types<'b> {
    fn parse(btf: &'b [u8]) -> Option<Self> {
        if u16::from_ne_bytes(*btf.first_chunk()?) != MAGIC {
            return None;
        }
        let body = btf.get(word(btf, 4)? as usize..)?;
        let mut rest = section(body, word(btf, 8)?, word(btf, 12)?)?;
        let names = section(body, word(btf, 16)?, word(btf, 20)?)?;
        // Number 0 is void.
        let mut records: Vec<&[u8]> = vec![&[]];
        while !rest.is_empty() {
            let (kind, count) = kind_and_count(rest)?;
            let length = TYPE_RECORD + extra(kind, count)?;
            records.push(rest.get(..length)?);
            rest = rest.get(length..)?;
        }
        Some(Self { records, names })
    }

    fn structure(&self, name: &str) -> Option<&'b [u8]> {
        let mut records = self.records.iter().copied();
        records.find(|record| self.is(record, KIND_STRUCT, name))
    }

    /// The number of a function.
    fn function(&self, name: &str) -> Option<u32> {
        let mut records = self.records.iter();
        let at = records.position(|record| self.is(record, KIND_FUNCTION, name))?;
        u32::try_from(at).ok()
    }

    fn is(&self, record: &[u8], wanted: u32, name: &str) -> bool {
        kind_and_count(record).is_some_and(|(kind, _)| kind == wanted)
            && word(record, 0).and_then(|at| self.name(at)) == Some(name.as_bytes())
    }

    /// Collects the members of `record`, whose first bit is bit `base`, with the bit at which
    /// each begins.
    fn members(
        &self,
        record: &[u8],
        base: u32,
        nesting: u32,
        found: &mut BTreeMap<&'b [u8], u32>,
    ) -> Option<()> {
        let (_, count) = kind_and_count(record)?;
        let bitfields = word(record, 4)? >> 31 == 1;
        for member in record
            .get(TYPE_RECORD..)?
            .chunks_exact(MEMBER_RECORD)
            .take(count)
        {
            let offset = word(member, 8)?;
            let bit = base
                + if bitfields {
                    offset & 0x00ff_ffff
                } else {
                    offset
                };
            let name = self.name(word(member, 0)?)?;
            if !name.is_empty() {
                found.entry(name).or_insert(bit);
                continue;
            }
            let inner = self.records.get(word(member, 4)? as usize)?;
            let (kind, _) = kind_and_count(inner)?;
            if nesting > 0 && (kind == KIND_STRUCT || kind == KIND_UNION) {
                self.members(inner, bit, nesting - 1, found)?;
            }
        }
        Some(())
    }

    fn name(&self, at: u32) -> Option<&'b [u8]> {
        self.names
            .get(at as usize..)?
            .split(|byte| *byte == 0)
            .next()
    }
}

fn section(body: &[u8], offset: u32, length: u32) -> Option<&[u8]> {
    body.get(offset as usize..)?.get(..length as usize)
}

fn kind_and_count(record: &[u8]) -> Option<(u32, usize)> {
    let info = word(record, 4)?;
    Some((info >> 24 & 0x1f, (info & 0xffff) as usize))
}

/// Bytes that follow a type's record.
fn extra(kind: u32, count: usize) -> Option<usize> {
    match kind {
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => Some(0),
        // Integers, variables, declaration tags.
        1 | 14 | 17 => Some(4),
        // Arrays.
        3 => Some(12),
        // Structs, unions, data sections, 64-bit enums.
        KIND_STRUCT | KIND_UNION | 15 | 19 => Some(count * MEMBER_RECORD),
        // Enums, function prototypes.
        6 | 13 => Some(count * 8),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|word| u32::from_ne_bytes(*word))
}
