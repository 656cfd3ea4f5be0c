//! The layout of references in index pages: one reference stands for all of a batch.
//!
//! ```text
//!   root: [count, 0, reference, reference, …]          up to 1022 references
//!   root: [count, pages, index page, index page, …]    more: index pages of 1024 references each
//! ```

use crate::Failure;
use alloc::format;
use alloc::vec::Vec;
use bulkhead_xen::{GrantRef, PAGE_SIZE};

/// The words of a page.
pub const WORDS: usize = PAGE_SIZE / 4;

/// The words before the references of the root.
const HEADER: usize = 2;

/// The most references that fit the root itself.
const IN_ROOT: usize = WORDS - HEADER;

/// A page of the index.
pub type Words = [u32; WORDS];

/// Returns the number of index pages that a batch takes besides the root.
pub fn pages_for(count: usize) -> usize {
    match count <= IN_ROOT {
        true => 0,
        false => count.div_ceil(WORDS),
    }
}

/// Returns the words of the root of a batch of `count` references, which holds them or those of the index pages.
pub fn root(count: usize, held: &[GrantRef]) -> Words {
    let mut words = [0; WORDS];
    words[0] = count as u32;
    words[1] = pages_for(count) as u32;
    fill(&mut words[HEADER..], held);
    words
}

/// Returns the words of an index page.
pub fn page(held: &[GrantRef]) -> Words {
    let mut words = [0; WORDS];
    fill(&mut words, held);
    words
}

fn fill(words: &mut [u32], held: &[GrantRef]) {
    for (word, gref) in words.iter_mut().zip(held) {
        *word = gref.0;
    }
}

/// The content of a root, checked, as the other domain has written it.
#[derive(Debug, PartialEq, Eq)]
pub enum Root {
    /// All references of the batch.
    References(Vec<GrantRef>),
    /// The index pages that have them, and the number of references.
    Pages(Vec<GrantRef>, usize),
}

impl Root {
    /// Reads a root. More than `most` references are an error.
    pub fn parse(words: &Words, most: usize) -> Result<Root, Failure> {
        let (count, pages) = (words[0] as usize, words[1] as usize);
        if count == 0 || count > most || pages != pages_for(count) || pages > IN_ROOT {
            return Err(Failure(format!(
                "an index of {count} references in {pages} pages"
            )));
        }
        let held = |held: usize| words[HEADER..].iter().take(held).copied().map(GrantRef);
        Ok(match pages {
            0 => Root::References(held(count).collect()),
            pages => Root::Pages(held(pages).collect(), count),
        })
    }
}
