//! The operations on nodes, which a client and a transaction have in common.

use crate::error::{Error, Excerpt, Fault};
use crate::listing;
use crate::path;
use crate::pending::Pending;
use crate::shared::Handle;
use crate::wire::{self, Permission, Refusal, Request, TransactionId};
use alloc::string::String;
use alloc::vec::Vec;
use core::str::FromStr;

/// The nodes of the store, as a [`Client`](crate::Client) or a
/// [`Transaction`](crate::Transaction) sees them.
///
/// A path without a slash in front is relative to the domain's own directory. An
/// operation whose future is dropped early may be done nevertheless, and harms nothing else.
#[derive(Clone, Debug)]
pub struct Nodes {
    shared: Handle,
    transaction: TransactionId,
}

impl Nodes {
    pub(crate) fn new(shared: Handle, transaction: TransactionId) -> Nodes {
        Nodes {
            shared,
            transaction,
        }
    }

    pub(crate) fn shared(&self) -> &Handle {
        &self.shared
    }

    pub(crate) fn id(&self) -> TransactionId {
        self.transaction
    }

    /// Checks the path and queues the request.
    pub(crate) fn ask(&self, request: Request<'_>) -> Result<Pending, Error> {
        if !matches!(request, Request::DomainPath(_)) {
            path::check(request.subject())?;
        }
        Pending::ask(&self.shared, request, self.transaction)
    }

    async fn done(&self, request: Request<'_>) -> Result<(), Error> {
        self.ask(request)?.parsed(wire::parse_okay).await
    }

    // The methods that take paths of any type call these, which are compiled once.

    async fn text(&self, path: &str) -> Result<String, Error> {
        text(path, self.ask(Request::Read(path))?.await?)
    }

    async fn optional_text(&self, path: &str) -> Result<Option<String>, Error> {
        optional(self.text(path).await)
    }

    async fn names(&self, path: &str) -> Result<Vec<String>, Error> {
        let whole = self.ask(Request::Directory(path))?;
        match whole.parsed(wire::parse_names).await {
            Err(error) if error.refusal() == Some(Refusal::TooBig) => {
                listing::in_parts(self, path, error).await
            }
            result => result,
        }
    }

    /// Reads a node's value.
    pub async fn read_bytes(&self, path: impl AsRef<str>) -> Result<Vec<u8>, Error> {
        self.ask(Request::Read(path.as_ref()))?.await
    }

    /// Reads a node's value as text.
    pub async fn read(&self, path: impl AsRef<str>) -> Result<String, Error> {
        self.text(path.as_ref()).await
    }

    /// Reads a node's value as text. Returns `None` if there is no such node.
    pub async fn read_optional(&self, path: impl AsRef<str>) -> Result<Option<String>, Error> {
        self.optional_text(path.as_ref()).await
    }

    /// Reads the start of a node's value as text: 64 bytes at most. Returns `None` if there is no such node.
    pub async fn read_start(&self, path: impl AsRef<str>) -> Result<Option<String>, Error> {
        let path = path.as_ref();
        let value = self.ask(Request::ReadStart(path))?.await;
        optional(value.and_then(|value| text(path, value)))
    }

    /// Reads the values of several nodes as text, all asked for at once. Returns `None` for each node that is
    /// not there.
    pub async fn read_each(&self, paths: &[String]) -> Result<Vec<Option<String>>, Error> {
        self.each(paths, |path| Request::Read(path)).await
    }

    /// Reads the starts of the values of several nodes, as [`read_start`](Self::read_start) does.
    pub async fn read_each_start(&self, paths: &[String]) -> Result<Vec<Option<String>>, Error> {
        self.each(paths, |path| Request::ReadStart(path)).await
    }

    async fn each(
        &self,
        paths: &[String],
        request: fn(&str) -> Request<'_>,
    ) -> Result<Vec<Option<String>>, Error> {
        let asked = paths.iter().map(|path| self.ask(request(path)));
        let asked: Vec<_> = asked.collect();
        let mut values = Vec::new();
        for (path, asked) in paths.iter().zip(asked) {
            let value = asked?.await.and_then(|value| text(path, value));
            values.push(optional(value)?);
        }
        Ok(values)
    }

    /// Reads a node's value as a decimal number: digits, perhaps after a minus sign, and nothing else.
    pub async fn read_number<T: FromStr>(&self, path: impl AsRef<str>) -> Result<T, Error> {
        let path = path.as_ref();
        let value = self.read(path).await?;
        let digits = value.strip_prefix('-').unwrap_or(&value);
        let number = match digits.bytes().all(|byte| byte.is_ascii_digit()) {
            true => value.parse().ok(),
            false => None,
        };
        number.ok_or_else(|| {
            Fault::NotANumber {
                path: path.into(),
                value,
            }
            .into()
        })
    }

    /// Reads a node's value as a decimal number. Returns `None` if there is no such node.
    pub async fn read_number_optional<T: FromStr>(
        &self,
        path: impl AsRef<str>,
    ) -> Result<Option<T>, Error> {
        optional(self.read_number(path).await)
    }

    /// Returns whether a node exists. One that may not be read counts as an error, not as missing.
    pub async fn exists(&self, path: impl AsRef<str>) -> Result<bool, Error> {
        let value = self.ask(Request::ReadStart(path.as_ref()))?.await;
        Ok(optional(value)?.is_some())
    }

    /// Sets a node's value. Nodes above it that are missing are made.
    pub async fn write(&self, path: impl AsRef<str>, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.done(Request::Write(path.as_ref(), value.as_ref()))
            .await
    }

    /// Makes sure that a node exists. Nodes above it that are missing are made.
    pub async fn mkdir(&self, path: impl AsRef<str>) -> Result<(), Error> {
        self.done(Request::Mkdir(path.as_ref())).await
    }

    /// Removes a node and everything below. It is fine if there is none, but there must be a node
    /// above.
    pub async fn remove(&self, path: impl AsRef<str>) -> Result<(), Error> {
        self.done(Request::Remove(path.as_ref())).await
    }

    /// Lists the names of a node's children, of any number.
    pub async fn directory(&self, path: impl AsRef<str>) -> Result<Vec<String>, Error> {
        self.names(path.as_ref()).await
    }

    /// Lists the names of a node's children; none if there is no such node.
    pub async fn directory_or_empty(&self, path: impl AsRef<str>) -> Result<Vec<String>, Error> {
        Ok(optional(self.directory(path).await)?.unwrap_or_default())
    }

    /// Reads a node's permissions.
    pub async fn permissions(&self, path: impl AsRef<str>) -> Result<Vec<Permission>, Error> {
        self.ask(Request::GetPermissions(path.as_ref()))?
            .parsed(wire::parse_permissions)
            .await
    }

    /// Sets a node's permissions; the first of them names the owner. Only the owner may do so.
    pub async fn set_permissions(
        &self,
        path: impl AsRef<str>,
        permissions: &[Permission],
    ) -> Result<(), Error> {
        self.done(Request::SetPermissions(path.as_ref(), permissions))
            .await
    }
}

fn text(path: &str, value: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(value).map_err(|error| {
        Fault::NotText {
            path: path.into(),
            value: Excerpt::of(error.as_bytes()),
        }
        .into()
    })
}

/// Returns `None` for a node that is missing.
fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
