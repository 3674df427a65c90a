//! Flow-control windows (RFC 9113 sections 5.2 and 6.9).

/// Both windows of a new connection, until settings and updates change them (RFC 9113 section 6.9.2).
pub const DEFAULT_WINDOW: u32 = 65_535;
/// No window may be larger (RFC 9113 section 6.9.1).
pub const MAX_WINDOW: u32 = 0x7fff_ffff;

/// A window grew beyond 2^31-1.
#[derive(Debug, PartialEq, Eq)]
pub struct Overflow;

/// The peer sent more than the window allows.
#[derive(Debug, PartialEq, Eq)]
pub struct Overrun;

/// What we may still send. It is signed, since a change of the peer's SETTINGS can take away what was used already
/// (RFC 9113 section 6.9.2).
#[derive(Debug, Clone)]
pub struct SendWindow(i64);

impl SendWindow {
    /// A window of this size.
    pub fn new(size: u32) -> SendWindow {
        SendWindow(i64::from(size))
    }

    /// Bytes that may be sent now.
    pub fn available(&self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// Takes what is sent; the caller has asked [`SendWindow::available`].
    pub fn consume(&mut self, n: usize) {
        self.0 -= i64::try_from(n).unwrap_or(i64::from(MAX_WINDOW));
    }

    /// Adds the increment of a WINDOW_UPDATE, or the difference of two initial window sizes.
    pub fn grow(&mut self, by: i64) -> Result<(), Overflow> {
        let grown = self.0.saturating_add(by);
        if grown > i64::from(MAX_WINDOW) {
            return Err(Overflow);
        }
        self.0 = grown;
        Ok(())
    }
}

/// What the peer may still send, and what the application has taken but the peer was not told about yet. A window only
/// grows: what the peer was allowed once can't be taken back by a WINDOW_UPDATE.
#[derive(Debug, Clone)]
pub struct RecvWindow {
    size: u32,
    left: u32,
    released: u32,
}

impl RecvWindow {
    /// A window that is kept at this size.
    pub fn new(size: u32) -> RecvWindow {
        RecvWindow { size, left: size, released: 0 }
    }

    /// Lets the peer have this many bytes under way. Returns the increment to send, if that is more than before.
    pub fn grow_to(&mut self, size: u32) -> Option<u32> {
        let increment = size.min(MAX_WINDOW).checked_sub(self.size).filter(|n| *n > 0)?;
        self.size += increment;
        self.left += increment;
        Some(increment)
    }

    /// The size at which it is kept.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Takes what the peer sent, padding included.
    pub fn receive(&mut self, n: usize) -> Result<(), Overrun> {
        let n = u32::try_from(n).map_err(|_| Overrun)?;
        self.left = self.left.checked_sub(n).ok_or(Overrun)?;
        Ok(())
    }

    /// Gives back what the application has taken. Returns the increment to send once half of the window is used: less
    /// would be a frame for each frame, more would let the peer run dry.
    pub fn release(&mut self, n: usize) -> Option<u32> {
        let outstanding = self.size - self.left;
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.released = self.released.saturating_add(n).min(outstanding);
        if self.released == 0 || self.released < self.size / 2 {
            return None;
        }
        let increment = std::mem::take(&mut self.released);
        self.left += increment;
        Some(increment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_window_sends_nothing_until_it_is_positive() {
        let mut window = SendWindow::new(100);
        window.consume(80);
        window.grow(-60).unwrap();
        assert_eq!(window.available(), 0);
        window.grow(40).unwrap();
        assert_eq!(window.available(), 0);
        window.grow(1).unwrap();
        assert_eq!(window.available(), 1);
    }

    #[test]
    fn refuses_growth_beyond_the_maximum() {
        let mut window = SendWindow::new(MAX_WINDOW);
        assert_eq!(window.grow(1), Err(Overflow));
        assert_eq!(window.available(), 0x7fff_ffff);
    }

    #[test]
    fn update_is_sent_when_half_is_used() {
        let mut window = RecvWindow::new(10);
        window.receive(4).unwrap();
        assert_eq!(window.release(4), None);
        window.receive(6).unwrap();
        assert_eq!(window.receive(1), Err(Overrun));
        assert_eq!(window.release(1), Some(5));
        window.receive(5).unwrap();
        assert_eq!(window.release(1000), Some(10), "never more than was received");
    }

    #[test]
    fn a_grown_window_lets_the_difference_through_at_once() {
        let mut window = RecvWindow::new(10);
        window.receive(10).unwrap();
        assert_eq!(window.grow_to(10), None);
        assert_eq!(window.grow_to(25), Some(15));
        window.receive(15).unwrap();
        assert_eq!(window.receive(1), Err(Overrun));
        assert_eq!(window.release(25), Some(25));
        assert_eq!(window.grow_to(u32::MAX), Some(MAX_WINDOW - 25));
    }
}
