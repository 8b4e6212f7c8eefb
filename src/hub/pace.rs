//! How slowly a server may send. One that sends a byte now and then keeps every connection alive, and a pull waiting for ever.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Fewer bytes a second than this are as good as none.
pub(super) const SLOWEST: u64 = 1024;

/// A body that ends with an error when it comes too slowly, or takes too long.
pub(super) struct Paced<R> {
    inner: R,
    /// How long it may be slow.
    span: Duration,
    /// How long it may take.
    total: Option<Duration>,
    began: Instant,
    /// When the span began that is looked at, and what has come in it.
    since: Instant,
    came: u64,
    slow: bool,
}

impl<R: Read> Paced<R> {
    pub(super) fn new(inner: R, span: Duration, total: Option<Duration>) -> Self {
        let now = Instant::now();
        Paced {
            inner,
            span,
            total,
            began: now,
            since: now,
            came: 0,
            slow: false,
        }
    }

    /// Whether it ended because it came too slowly.
    pub(super) fn was_slow(&self) -> bool {
        self.slow
    }

    /// Looks at the time.
    fn is_slow(&mut self) -> bool {
        let now = Instant::now();
        let span = now.duration_since(self.since);
        if span >= self.span {
            let least = SLOWEST as f64 * span.as_secs_f64();
            self.slow |= (self.came as f64) < least;
            (self.since, self.came) = (now, 0);
        }
        self.slow |= self
            .total
            .is_some_and(|t| now.duration_since(self.began) >= t);
        self.slow
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.came += n as u64;
        if n > 0 && self.is_slow() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the server sends less than {SLOWEST} bytes a second"),
            ));
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many bytes at each read, after a wait.
    struct Drip(usize, Duration);

    impl Read for Drip {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let end = Instant::now() + self.1;
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            Ok(self.0.min(buf.len()))
        }
    }

    #[test]
    fn drops_are_no_stream() {
        let ms = Duration::from_millis;
        let read = |body: Drip, total| {
            let mut paced = Paced::new(body.take(1 << 20), ms(20), total);
            let done = io::copy(&mut paced, &mut io::sink());
            (done.is_ok(), paced.was_slow())
        };
        assert_eq!(read(Drip(1, ms(5)), None), (false, true));
        assert_eq!(read(Drip(1 << 16, ms(1)), None), (true, false));
        // As fast as it may be, and too long.
        assert_eq!(read(Drip(512, ms(1)), Some(ms(50))), (false, true));
    }
}
