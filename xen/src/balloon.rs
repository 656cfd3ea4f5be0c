//! The domain's amount of memory, as something that follows the toolstack's target.

/// Unused memory of this domain, given back to Xen and taken again, so that the domain has as
/// much as the toolstack wants it to have (`memory/target`). Where images live, and what is allocated, is
/// never given back here.
pub trait Balloon {
    /// Returns the number of pages that the domain has.
    fn owned(&self) -> usize;

    /// Returns the number of pages that the domain could have in addition: those that were given back, or
    /// were never there.
    fn missing(&self) -> usize;

    /// Returns the number of pages that images gave back, which are taken again when they are written.
    fn released(&self) -> usize;

    /// Gives up to `pages` back, fewer at a time if that takes long, and returns how many. With 0, all the
    /// rest is in use, or belongs to the reserve that is never given back.
    fn give_back(&self, pages: usize) -> usize;

    /// Takes up to `pages` of the missing ones, fewer at a time if that takes long, and returns how many.
    /// With 0, none is missing, or Xen gives none.
    fn take_back(&self, pages: usize) -> usize;
}
