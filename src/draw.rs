//! Numbers that look random and are the same on every machine: `SplitMix64` (Steele, Lea, Flood 2014).
//!
//! What is drawn is part of results that are compared bit by bit. So nothing here may ever give other numbers.

/// The distance of neighbouring states: 2⁶⁴ divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads a number over all: each number has another one.
fn spread(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The number at a place of the stream of a seed, the first at 0.
pub(crate) fn at(seed: u64, place: u64) -> u64 {
    spread(seed.wrapping_add(place.wrapping_add(1).wrapping_mul(STEP)))
}

/// The seed of the stream for an epoch.
#[cfg(feature = "train")]
pub(crate) fn of_epoch(seed: u64, epoch: u64) -> u64 {
    seed ^ epoch.wrapping_mul(STEP)
}

/// A number in `[0, 1)` of the upper bits of another.
#[cfg(feature = "train")]
pub(crate) fn unit(z: u64) -> f64 {
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// A stream of numbers.
#[cfg(feature = "train")]
pub(crate) struct Draws(u64);

#[cfg(feature = "train")]
impl Draws {
    /// The stream of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Draws(seed)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        let z = at(self.0, 0);
        self.0 = self.0.wrapping_add(STEP);
        z
    }

    /// A number from 0 up to 1.
    pub(crate) fn unit(&mut self) -> f64 {
        unit(self.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference implementation gives these for the seed 1234567 (Vigna, splitmix64.c).
    #[test]
    fn the_numbers_are_those_of_the_reference() {
        let want = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        let found: Vec<u64> = (0..5).map(|i| at(1_234_567, i)).collect();
        assert_eq!(found, want);
        #[cfg(feature = "train")]
        {
            let mut draws = Draws::new(1_234_567);
            assert_eq!([(); 5].map(|()| draws.next()), want);
        }
    }
}
