//! Which of the tables published workers have adopted, for whoever must know that they have.

use super::Workers;

impl Workers {
    /// Tables that each worker was given so far.
    #[must_use]
    pub fn given(&self) -> Vec<u64> {
        self.handles.iter().map(|handle| handle.adoption().given).collect()
    }

    /// Whether every worker has adopted what it was [given](Self::given) then.
    #[must_use]
    pub fn have_adopted(&self, given: &[u64]) -> bool {
        let mut workers = self.handles.iter().zip(given);
        workers.all(|(handle, given)| handle.adoption().adopted >= *given)
    }
}
