//! Instruction sets: what this machine has, and how one loop is compiled for several of them.
//!
//! A kernel's inner loop is an ordinary generic function `body::<FMA>(...)`, marked `#[inline(always)]`. [`multiversion!`] compiles it
//! once per instruction set; which one runs is said by its first argument.

use std::sync::OnceLock;

/// The instructions that kernels may use. A value is a proof: only [`Isa::detect`] and [`Isa::all`] make one, of what the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isa {
    level: Level,
    unit: Unit,
}

/// The instructions of ordinary loops, worst first.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "never detected on other processors")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Whatever the compiler may assume.
    Portable,
    /// AVX2, FMA and F16C, which every processor with the first of them has.
    Avx2,
    /// AVX-512 with the F, BW, VL and DQ parts, and FMA.
    Avx512,
}

/// The instructions of products in bfloat16, worst first.
#[cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    expect(dead_code, reason = "never detected on other systems")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unit {
    /// None: such products are computed in `f32`.
    None,
    /// `VDPBF16PS`, beside AVX-512.
    Dot,
    /// AMX tiles, and `VDPBF16PS`.
    Tiles,
}

impl Isa {
    /// The best instructions that the processor has and the system lets this process use; probed once.
    pub(crate) fn detect() -> Self {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| {
            let level = probe_level();
            Isa {
                level,
                unit: probe_unit(level),
            }
        })
    }

    /// The instructions of ordinary loops.
    pub(crate) fn level(self) -> Level {
        self.level
    }

    /// The instructions of products in bfloat16.
    pub(crate) fn unit(self) -> Unit {
        self.unit
    }

    /// Every set of instructions that this machine has: each level without a unit, then each unit.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let best = Self::detect();
        let levels = [Level::Portable, Level::Avx2, Level::Avx512]
            .into_iter()
            .filter(|level| *level <= best.level)
            .map(|level| Isa {
                level,
                unit: Unit::None,
            });
        levels.chain(Self::with_units()).collect()
    }

    /// Every unit that this machine has.
    #[cfg(test)]
    pub(crate) fn with_units() -> Vec<Self> {
        let best = Self::detect();
        [Unit::Dot, Unit::Tiles]
            .into_iter()
            .filter(|unit| *unit <= best.unit)
            .map(|unit| Isa { unit, ..best })
            .collect()
    }
}

#[cfg(target_arch = "x86_64")]
fn probe_level() -> Level {
    let fma = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    match (fma, wide) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        (false, _) => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn probe_level() -> Level {
    Level::Portable
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn probe_unit(level: Level) -> Unit {
    if level != Level::Avx512 || !is_x86_feature_detected!("avx512bf16") {
        return Unit::None;
    }
    // CPUID leaf 7, EDX: bit 22 is AMX-BF16, bit 24 is AMX-TILE. AVX-512 implies that leaf 7 exists.
    let edx = std::arch::x86_64::__cpuid_count(7, 0).edx;
    let tiles = edx & (1 << 22 | 1 << 24) == (1 << 22 | 1 << 24);
    if tiles && may_use_tiles() {
        Unit::Tiles
    } else {
        Unit::Dot
    }
}

/// Asks the system for tile state, which Linux grants per process on request.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[expect(unsafe_code, reason = "a system call without a safe wrapper")]
fn may_use_tiles() -> bool {
    /// `ARCH_REQ_XCOMP_PERM` of `arch_prctl(2)`.
    const REQUEST: libc::c_ulong = 0x1023;
    /// `XFEATURE_XTILEDATA`.
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours. An old kernel answers with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn probe_unit(_: Level) -> Unit {
    Unit::None
}

/// Defines `fn name(isa, args)` that runs `body::<FMA>(args)` compiled for the instructions of `isa`.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                match isa.level() {
                    // SAFETY: an `Isa` of this level exists only where every feature that `wide` is compiled with was detected.
                    $crate::isa::Level::Avx512 => return unsafe { wide($($arg),*) },
                    // SAFETY: an `Isa` of this level exists only where AVX2, FMA and F16C were detected.
                    $crate::isa::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::isa::Level::Portable => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            $body::<false>($($arg),*)
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_among_all() {
        let all = Isa::all();
        assert!(all.contains(&Isa::detect()), "{all:?}");
        assert_eq!(all[0].level(), Level::Portable);
    }
}
