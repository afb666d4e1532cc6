//! Graphs in the language of `dot`, as far as ours go: a small parser, which refuses everything else.

use std::collections::BTreeMap;

pub(crate) type Attributes = BTreeMap<String, String>;

#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(crate) nodes: BTreeMap<String, Attributes>,
    pub(crate) edges: Vec<(String, String, Attributes)>,
    /// The labels of the clusters.
    pub(crate) clusters: Vec<String>,
}

/// Reads a graph whose edges lead between nodes that it has.
pub(crate) fn read(text: &str) -> Graph {
    let mut parser = Parser { tokens: tokens(text), at: 0 };
    let mut graph = Graph::default();
    parser.expect("digraph");
    parser.word();
    parser.block(&mut graph);
    assert_eq!(parser.at, parser.tokens.len(), "something follows the graph");
    for (from, to, _) in &graph.edges {
        assert!(graph.nodes.contains_key(from) && graph.nodes.contains_key(to), "an edge {from} -> {to} of no nodes");
    }
    graph
}

impl Graph {
    /// What is said of the edges from a node to another.
    pub(crate) fn between(&self, from: &str, to: &str) -> Vec<&Attributes> {
        let edges = self.edges.iter().filter(|edge| edge.0 == from && edge.1 == to);
        edges.map(|(_, _, attributes)| attributes).collect()
    }
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    Sign(&'static str),
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let sign = ["{", "}", "[", "]", ";", ",", "=", "->"].into_iter().find(|sign| rest.starts_with(sign));
        rest = if let Some(sign) = sign {
            tokens.push(Token::Sign(sign));
            &rest[sign.len()..]
        } else if first == '"' {
            let mut word = String::new();
            let mut characters = rest.char_indices().skip(1);
            let end = loop {
                match characters.next().expect("a string that ends") {
                    (end, '"') => break end,
                    (_, '\\') => match characters.next().expect("a character that is escaped").1 {
                        'n' => word.push('\n'),
                        other => word.push(other),
                    },
                    (_, other) => word.push(other),
                }
            };
            tokens.push(Token::Word(word));
            &rest[end + 1..]
        } else {
            let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
            let end = rest.find(|character| !is_word(character)).unwrap_or(rest.len());
            assert!(end > 0, "'{first}' is not written so");
            tokens.push(Token::Word(rest[..end].to_owned()));
            &rest[end..]
        }
        .trim_start();
    }
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn takes(&mut self, sign: &str) -> bool {
        let takes = matches!(self.tokens.get(self.at), Some(Token::Sign(there)) if *there == sign);
        self.at += usize::from(takes);
        takes
    }

    fn sign(&mut self, sign: &str) {
        assert!(self.takes(sign), "no '{sign}' at token {}: {:?}", self.at, self.tokens.get(self.at));
    }

    fn word(&mut self) -> String {
        match self.tokens.get(self.at) {
            Some(Token::Word(word)) => {
                self.at += 1;
                word.clone()
            }
            other => panic!("no word at token {}: {other:?}", self.at),
        }
    }

    fn expect(&mut self, word: &str) {
        assert_eq!(self.word(), word);
    }

    fn block(&mut self, graph: &mut Graph) {
        self.sign("{");
        while !self.takes("}") {
            self.statement(graph);
        }
    }

    fn statement(&mut self, graph: &mut Graph) {
        let word = self.word();
        if word == "subgraph" {
            assert!(self.word().starts_with("cluster_"));
            return self.block(graph);
        }
        if self.takes("=") {
            assert_eq!(word, "label");
            let label = self.word();
            graph.clusters.push(label);
        } else if self.takes("->") {
            let to = self.word();
            let attributes = self.attributes();
            graph.edges.push((word, to, attributes));
        } else {
            let attributes = self.attributes();
            if word != "node" {
                assert!(graph.nodes.insert(word, attributes).is_none(), "a node that is there twice");
            }
        }
        self.sign(";");
    }

    fn attributes(&mut self) -> Attributes {
        let mut attributes = Attributes::new();
        if !self.takes("[") {
            return attributes;
        }
        loop {
            let name = self.word();
            self.sign("=");
            let value = self.word();
            assert!(attributes.insert(name, value).is_none(), "an attribute that is there twice");
            if self.takes("]") {
                return attributes;
            }
            self.sign(",");
        }
    }
}
