//! All that can be reached from given functions, and by which chain.

use super::function::Facts;
use super::image::{Function, Image};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// The functions that can be reached.
#[derive(Debug)]
pub(crate) struct Reach<'a> {
    image: &'a Image,
    /// By first byte, with who was found to reach it first.
    found: BTreeMap<u32, (Facts, Option<u32>)>,
}

impl<'a> Reach<'a> {
    /// Follows all calls from these functions, but not beyond those named in
    /// `ends`.
    pub(crate) fn from(image: &'a Image, roots: &[&Function], ends: &[&str]) -> Self {
        let mut found = BTreeMap::new();
        let mut open: Vec<(u32, Option<u32>)> =
            roots.iter().rev().map(|root| (root.start, None)).collect();
        while let Some((start, caller)) = open.pop() {
            if found.contains_key(&start) {
                continue;
            }
            let Some(function) = image.at(start) else {
                continue;
            };
            let mut facts = Facts::of(image, function);
            if ends.contains(&function.name()) {
                facts.callees.clear();
            }
            open.extend(facts.callees.iter().map(|&callee| (callee, Some(start))));
            found.insert(start, (facts, caller));
        }
        Self { image, found }
    }

    /// Every function with what it does.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&'a Function, &Facts)> {
        self.found
            .iter()
            .filter_map(|(&start, (facts, _))| Some((self.image.at(start)?, facts)))
    }

    /// How a function is reached: the chain of names, a root first.
    pub(crate) fn chain(&self, function: &Function) -> String {
        let mut names = Vec::new();
        let mut start = Some(function.start);
        while let Some(here) = start {
            names.push(self.image.at(here).map_or("?", Function::name));
            start = self.found.get(&here).and_then(|(_, caller)| *caller);
        }
        names.reverse();
        names.join("\n      -> ")
    }

    /// Bytes of stack on the deepest path from `root`, and that path. A function
    /// named in `ends` starts a new stack and counts for nothing; a call to a
    /// function whose own end is awaited is recursion, which is an error.
    pub(crate) fn deepest(&self, root: &Function, ends: &[&str]) -> Result<(u32, Vec<&'a str>)> {
        let mut known = BTreeMap::new();
        let bytes = self.depth(root.start, ends, &mut known, &mut Vec::new())?;
        let mut path = Vec::new();
        let mut here = Some(root.start);
        while let Some(start) = here {
            path.push(self.image.at(start).map_or("?", Function::name));
            here = known.get(&start).and_then(|&(_, next)| next);
        }
        Ok((bytes, path))
    }

    fn depth(
        &self,
        start: u32,
        ends: &[&str],
        known: &mut BTreeMap<u32, (u32, Option<u32>)>,
        open: &mut Vec<u32>,
    ) -> Result<u32> {
        if let Some(&(bytes, _)) = known.get(&start) {
            return Ok(bytes);
        }
        let function = self.image.at(start).context("no such function")?;
        if ends.contains(&function.name()) {
            return Ok(0);
        }
        if open.contains(&start) {
            let names: Vec<&str> = open
                .iter()
                .skip_while(|&&other| other != start)
                .filter_map(|&other| self.image.at(other).map(Function::name))
                .collect();
            anyhow::bail!("recursion: {}", names.join(" -> "));
        }
        open.push(start);
        let mut worst = (0, None);
        let (facts, _) = self.found.get(&start).context("not reached")?;
        for &callee in &facts.callees {
            let below = self.depth(callee, ends, known, open)?;
            if below > worst.0 {
                worst = (below, Some(callee));
            }
        }
        open.pop();
        let bytes = facts.stack + worst.0;
        known.insert(start, (bytes, worst.1));
        Ok(bytes)
    }
}
