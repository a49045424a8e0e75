//! Endpoints that the node adds of its own accord, by the way of every other request: what became of each is
//! looked at now and then, since nobody waits for it.

use std::collections::BTreeMap;

use control::admin::{AdminError, EndpointAdd, Reply};
use tokio::sync::mpsc::{self, Receiver, error::TryRecvError};

use super::Node;

/// Those that are under way, each by what the one who asks knows it by.
#[derive(Debug)]
pub(in crate::node) struct Asked<K>(BTreeMap<K, Receiver<Reply>>);

impl<K> Default for Asked<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Asked<K> {
    /// Those that are under way.
    pub(in crate::node) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    /// How many are.
    pub(in crate::node) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    pub(in crate::node) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this one is.
    pub(in crate::node) fn contains(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    /// Notes one that was asked for.
    pub(in crate::node) fn insert(&mut self, key: K, reply: Receiver<Reply>) {
        self.0.insert(key, reply);
    }

    /// Those that are over: of one that is no endpoint, why not.
    pub(in crate::node) fn take_answered(&mut self) -> Vec<(K, Result<(), String>)> {
        let mut answered = Vec::new();
        self.0.retain(|key, reply| {
            let outcome = match reply.try_recv() {
                Err(TryRecvError::Empty) => return true,
                Ok(Reply::Endpoint(_)) => Ok(()),
                Ok(Reply::Error(error)) => Err(error.to_string()),
                _ => Err("it was lost; it is tried again".into()),
            };
            answered.push((key.clone(), outcome));
            false
        });
        answered
    }
}

impl Node {
    /// Has an endpoint added for which no client asks.
    ///
    /// # Errors
    /// As those of [`Self::begin_endpoint_add`].
    pub(in crate::node) async fn ask_for_endpoint(
        &mut self,
        request: EndpointAdd,
    ) -> Result<Receiver<Reply>, AdminError> {
        request.validate()?;
        let (asked, reply) = mpsc::channel(1);
        self.begin_endpoint_add(request, asked).await?;
        Ok(reply)
    }
}
