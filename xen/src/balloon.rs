//! The domain's amount of memory, which follows the toolstack's target.

/// The balloon: gives unused memory of this domain back to Xen and takes it again, so that the domain has as much as
/// the toolstack wants it to have (`memory/target`). Memory of images, and memory that is allocated, is never given
/// back here.
pub trait Balloon {
    /// Returns the number of pages that the domain has.
    fn owned(&self) -> usize;

    /// Returns the number of pages that the domain could have in addition: those that were given back, or
    /// were never there.
    fn missing(&self) -> usize;

    /// Returns the number of pages that images gave back, which are taken again when they are written.
    fn released(&self) -> usize;

    /// Gives up to `pages` pages back, fewer at a time if that takes long, and returns their number. 0 means that all
    /// the rest is in use, or belongs to the reserve that is never given back.
    fn give_back(&self, pages: usize) -> usize;

    /// Takes up to `pages` of the missing pages, fewer at a time if that takes long, and returns their number. 0 means
    /// that none is missing, or that Xen gives none.
    fn take_back(&self, pages: usize) -> usize;
}
