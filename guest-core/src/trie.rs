//! A map from byte strings that finds all keys a string begins with, at a cost that grows with the
//! string and not with the map.
//!
//! A radix tree: a node has a value, or at least two children, or both (but for the root), and the
//! bytes between it and its parent stand in one label. The nodes lie in one vector and know each
//! other by position, so that a long chain of them – keys `a`, `aa`, `aaa`, … that a client may
//! well choose – is not dropped by recursion.

/// The position of a node in `Trie::nodes`.
type NodePosition = u32;

const ROOT: NodePosition = 0;

#[derive(Debug)]
pub(crate) struct Trie<V> {
    /// The root first, from the first key on.
    nodes: Vec<Node<V>>,
    /// Nodes that hang on no other, to be used again.
    free: Vec<NodePosition>,
}

#[derive(Debug)]
struct Node<V> {
    /// The bytes between the parent and this node; empty for the root only.
    label: Box<[u8]>,
    /// The first byte of each child's label, and the child.
    children: Vec<(u8, NodePosition)>,
    value: Option<V>,
}

/// Where a node hangs: its parent, and its place among the parent's children.
type Hook = (NodePosition, usize);

impl<V> Default for Trie<V> {
    fn default() -> Trie<V> {
        Trie { nodes: Vec::new(), free: Vec::new() }
    }
}

impl<V> Trie<V> {
    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.nodes.first().is_none_or(|root| root.value.is_none() && root.children.is_empty())
    }

    /// Visits the values of all keys that `bytes` begins with, the shortest key first.
    pub fn visit_prefixes<'a>(
        &'a self,
        bytes: impl IntoIterator<Item = u8>,
        mut visit: impl FnMut(&'a V),
    ) {
        let Some(mut node) = self.nodes.first() else {
            return;
        };
        let mut bytes = bytes.into_iter();
        loop {
            if let Some(value) = &node.value {
                visit(value);
            }
            let Some(byte) = bytes.next() else { return };
            let Some(place) = node.place_of_child(byte) else {
                return;
            };
            node = self.node(node.children[place].1);
            if node.label[1..].iter().any(|&expected| bytes.next() != Some(expected)) {
                return;
            }
        }
    }

    /// The value of this key.
    pub fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        let (node, _) = self.find(key)?;
        self.node_mut(node).value.as_mut()
    }

    /// The value of this key, made if there is none.
    pub fn get_or_insert(&mut self, key: &[u8]) -> &mut V
    where
        V: Default,
    {
        if self.nodes.is_empty() {
            self.add(Node::new(b""));
        }
        let mut node = ROOT;
        let mut rest = key;
        while let Some(&byte) = rest.first() {
            let Some(place) = self.node(node).place_of_child(byte) else {
                let leaf = self.add(Node::new(rest));
                self.node_mut(node).children.push((byte, leaf));
                node = leaf;
                break;
            };
            node = self.node(node).children[place].1;
            let label = &self.node(node).label;
            let shared = label.iter().zip(rest).take_while(|(left, right)| left == right).count();
            if shared < label.len() {
                self.split(node, shared);
            }
            rest = &rest[shared..];
        }
        self.node_mut(node).value.get_or_insert_default()
    }

    /// Takes a key out, and the nodes that only it needed.
    pub fn remove(&mut self, key: &[u8]) -> Option<V> {
        let (node, hook) = self.find(key)?;
        let value = self.node_mut(node).value.take()?;
        match hook {
            Some((parent, place)) if self.node(node).children.is_empty() => {
                self.node_mut(parent).children.swap_remove(place);
                self.release(node);
                self.merge_with_only_child(parent);
            }
            _ => self.merge_with_only_child(node),
        }
        Some(value)
    }

    fn find(&self, key: &[u8]) -> Option<(NodePosition, Option<Hook>)> {
        if self.nodes.is_empty() {
            return None;
        }
        let mut found = (ROOT, None);
        let mut rest = key;
        while let Some(&byte) = rest.first() {
            let parent = found.0;
            let place = self.node(parent).place_of_child(byte)?;
            let child = self.node(parent).children[place].1;
            rest = rest.strip_prefix(&*self.node(child).label)?;
            found = (child, Some((parent, place)));
        }
        Some(found)
    }

    /// Cuts a node in two: it keeps `at` bytes of its label, and a new child gets the others and
    /// all else it had.
    fn split(&mut self, node: NodePosition, at: usize) {
        let upper = self.node_mut(node);
        let lower = Node {
            label: upper.label[at..].into(),
            children: std::mem::take(&mut upper.children),
            value: upper.value.take(),
        };
        upper.label = upper.label[..at].into();
        let byte = lower.label[0];
        let lower = self.add(lower);
        self.node_mut(node).children.push((byte, lower));
    }

    /// Undoes `split` for a node that has neither a value nor a choice of children.
    fn merge_with_only_child(&mut self, node: NodePosition) {
        let upper = self.node(node);
        let &[(_, child)] = &*upper.children else {
            return;
        };
        if node == ROOT || upper.value.is_some() {
            return;
        }
        let lower = self.release(child);
        let upper = self.node_mut(node);
        upper.label = [&*upper.label, &*lower.label].concat().into();
        upper.children = lower.children;
        upper.value = lower.value;
    }

    fn add(&mut self, node: Node<V>) -> NodePosition {
        if let Some(position) = self.free.pop() {
            *self.node_mut(position) = node;
            return position;
        }
        self.nodes.push(node);
        NodePosition::try_from(self.nodes.len() - 1).expect("fewer nodes than 2^32 fit into memory")
    }

    /// Takes what a node holds; nothing may point to it any more.
    fn release(&mut self, node: NodePosition) -> Node<V> {
        self.free.push(node);
        std::mem::replace(self.node_mut(node), Node::new(b""))
    }

    fn node(&self, position: NodePosition) -> &Node<V> {
        &self.nodes[position as usize]
    }

    fn node_mut(&mut self, position: NodePosition) -> &mut Node<V> {
        &mut self.nodes[position as usize]
    }
}

impl<V> Node<V> {
    fn new(label: &[u8]) -> Node<V> {
        Node { label: label.into(), children: Vec::new(), value: None }
    }

    /// Where among the children the one is whose label begins with this byte.
    ///
    /// Searched from the front: with the ten children of a digit that took half as long as a binary
    /// search, whose steps the processor cannot foresee.
    fn place_of_child(&self, byte: u8) -> Option<usize> {
        self.children.iter().position(|&(first, _)| first == byte)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::Random;

    #[test]
    fn agrees_with_a_sorted_map() {
        let mut random = Random::from_environment();
        let mut trie: Trie<u64> = Trie::default();
        let mut map: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let key = |random: &mut Random| -> Vec<u8> {
            (0..random.below(6)).map(|_| *random.pick(b"ab\xff")).collect()
        };
        for _ in 0..20_000 {
            let changed = key(&mut random);
            if random.below(2) == 0 {
                let value = random.number();
                *trie.get_or_insert(&changed) = value;
                map.insert(changed, value);
            } else {
                assert_eq!(trie.get_mut(&changed), map.get_mut(&changed));
                assert_eq!(trie.remove(&changed), map.remove(&changed));
            }
            let queried = key(&mut random);
            let mut visited = Vec::new();
            trie.visit_prefixes(queried.iter().copied(), |&value| visited.push(value));
            let expected: Vec<u64> =
                (0..=queried.len()).filter_map(|end| map.get(&queried[..end])).copied().collect();
            assert_eq!(visited, expected);
            assert_eq!(trie.is_empty(), map.is_empty());
            check_shape(&trie);
        }
        for key in map.keys() {
            trie.remove(key);
        }
        assert_eq!(trie.nodes.len(), trie.free.len() + 1, "only the root is left");
    }

    /// No node is there for nothing, and none is lost.
    fn check_shape<V>(trie: &Trie<V>) {
        let mut seen = 0;
        let mut waiting = if trie.nodes.is_empty() { vec![] } else { vec![ROOT] };
        while let Some(position) = waiting.pop() {
            seen += 1;
            let node = trie.node(position);
            if position != ROOT {
                assert!(!node.label.is_empty());
                assert!(node.value.is_some() || node.children.len() > 1);
            }
            for &(byte, child) in &node.children {
                assert_eq!(trie.node(child).label[0], byte);
                waiting.push(child);
            }
        }
        assert_eq!(seen + trie.free.len(), trie.nodes.len());
    }

    #[test]
    fn a_long_chain_of_keys_is_dropped_without_recursion() {
        let chain = || {
            let key = [b'a'; 5_000];
            let mut trie: Trie<u32> = Trie::default();
            for end in (0..key.len()).rev() {
                trie.get_or_insert(&key[..end]);
            }
            let mut visited = 0;
            trie.visit_prefixes(key, |_| visited += 1);
            assert_eq!(visited, key.len());
        };
        // A stack on which so many calls would not fit.
        let thread = std::thread::Builder::new().stack_size(128 * 1024).spawn(chain);
        thread.unwrap().join().unwrap();
    }
}
