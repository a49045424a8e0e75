//! Work that may take long or fail badly, beside the control thread.

use std::any::Any;

/// What panicked said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} (a defect: please report it; its place is in the log above)")]
pub struct Panicked(String);

impl Panicked {
    /// By a panic that was caught.
    pub(crate) fn of(panic: &(dyn Any + Send)) -> Self {
        Self(words(panic).to_owned())
    }
}

/// Runs `work` on a thread of its own, since the control thread has packets' neighbours to ask
/// for, and catches its panic: whoever follows something must not end because of it.
///
/// # Errors
/// [`Panicked`].
pub(crate) async fn caught<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Panicked> {
    let panic = match tokio::task::spawn_blocking(work).await {
        Ok(value) => return Ok(value),
        Err(error) if error.is_panic() => error.into_panic(),
        Err(error) => return Err(Panicked(error.to_string())),
    };
    Err(Panicked::of(&*panic))
}

/// What a panic said.
pub(crate) fn words(panic: &(dyn Any + Send)) -> &str {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    said.unwrap_or("a panic without words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_in_its_own_words_and_goes_no_further() {
        assert_eq!(caught(|| 7).await, Ok(7));
        let number = 3;
        for said in [
            caught(|| panic!("plain")).await.map(|()| 0),
            caught(move || panic!("plain {number}")).await.map(|()| 0),
        ] {
            assert!(said.unwrap_err().to_string().starts_with("plain"));
        }
    }
}
