//! The order of nodes. Converters that insert casts leave files behind whose nodes read what later ones make; where that is all that is
//! wrong they are brought into order, each as close to its place as it can be.

use super::proto::{GraphProto, NodeProto, ValueInfoProto};
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The nodes in an order in which each reads what earlier ones make, and whether they had to be moved. They stay as they are where no
/// such order exists, or where a name is defined twice.
pub(super) fn ordered(nodes: Vec<NodeProto>) -> (Vec<NodeProto>, bool) {
    match order(&nodes) {
        Some(order) => {
            let mut slots: Vec<Option<NodeProto>> = nodes.into_iter().map(Some).collect();
            let moved = order.iter().filter_map(|&i| slots.get_mut(i)?.take());
            (moved.collect(), true)
        }
        None => (nodes, false),
    }
}

/// The order to bring the nodes into; `None` if they are in order, or cannot be brought into one.
fn order(nodes: &[NodeProto]) -> Option<Vec<usize>> {
    let mut made: FxHashMap<&str, usize> = FxHashMap::default();
    for (i, node) in nodes.iter().enumerate() {
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            if made.insert(name, i).is_some() {
                return None;
            }
        }
    }
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut waits: Vec<usize> = vec![0; nodes.len()];
    let mut late = false;
    for (i, node) in nodes.iter().enumerate() {
        let mut reads = Vec::new();
        names(node, &mut reads);
        let mut from: Vec<usize> = reads.iter().filter_map(|n| made.get(n).copied()).collect();
        from.sort_unstable();
        from.dedup();
        for producer in from {
            late |= producer > i;
            readers.get_mut(producer)?.push(i);
            *waits.get_mut(i)? += 1;
        }
    }
    if !late {
        return None;
    }
    let free = waits.iter().enumerate().filter(|(_, n)| **n == 0);
    let mut ready: BinaryHeap<Reverse<usize>> = free.map(|(i, _)| Reverse(i)).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for &reader in readers.get(i)? {
            let left = waits.get_mut(reader)?;
            *left -= 1;
            if *left == 0 {
                ready.push(Reverse(reader));
            }
        }
    }
    (order.len() == nodes.len()).then_some(order)
}

/// All names that a node or its subgraphs may read.
fn names<'a>(node: &'a NodeProto, out: &mut Vec<&'a str>) {
    out.extend(node.input.iter().map(String::as_str));
    for attribute in &node.attribute {
        let one = attribute.g.iter();
        for graph in one.chain(&attribute.graphs) {
            inner(graph, out);
        }
    }
}

fn inner<'a>(graph: &'a GraphProto, out: &mut Vec<&'a str>) {
    for node in &graph.node {
        names(node, out);
    }
    out.extend(graph.output.iter().map(ValueInfoProto::name));
}
