//! Openings of texts in many subjects, languages and kinds of code.

use anyhow::Result;

use crate::engine::hidden_state::Token;

/// Beginnings of every second text that a model writes itself.
pub const OPENINGS: [&str; 80] = [
    "The history of the city begins in the twelfth century, when",
    "import os\nimport sys\n\n\ndef main():\n    ",
    "\"I don't understand,\" she said, putting down the letter. \"Why would he",
    "La ciudad se encuentra en la orilla del río y",
    "Photosynthesis is the process by which",
    "Ingredients:\n\n2 cups of flour\n1 teaspoon of",
    "Theorem. Let G be a finite group and let",
    "Dear Sir or Madam,\n\nI am writing to",
    "#include <stdio.h>\n#include <stdlib.h>\n\nstatic int ",
    "The President announced on Tuesday that",
    "Il était une fois, dans un petit village,",
    "Q: What is the difference between",
    "The album was released in 1994 and reached",
    "SELECT customers.name, COUNT(orders.id)\nFROM customers\n",
    "Once upon a time there was a little girl who",
    "Das Unternehmen wurde im Jahr 1923 gegründet und",
    "The patient, a 54-year-old man, was admitted with",
    "User: How do I",
    "The battle took place on the morning of",
    "function renderList(items) {\n  const ",
    "Solution. We first note that the equation",
    "他是中国著名的",
    "The species is found in the forests of",
    "ACT I\n\nSCENE I. A street.\n\nEnter two gentlemen.\n\nFIRST GENTLEMAN. ",
    "Article 1. The parties agree that",
    "In this paper we propose a new method for",
    "package main\n\nimport (\n\t\"fmt\"\n",
    "A cidade foi fundada por colonos portugueses em",
    "The quarterly revenue of the company rose by",
    "When I was seven years old my father",
    "Step 1: Before you start, make sure that",
    "В начале девятнадцатого века",
    "In the second half the home side",
    "impl<T: Clone> Stack<T> {\n    pub fn ",
    "The novel tells the story of a young woman who",
    "La squadra ha vinto il campionato dopo",
    "Black holes are regions of space in which",
    "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n",
    "KING. What news from the north?\nMESSENGER. My lord,",
    "This hotel is a short walk from the station. The rooms",
    "Problem 3. A train leaves the station at",
    "日本の歴史において、",
    "The Constitution guarantees that every citizen",
    "$ git status\nOn branch ",
    "The wind had been rising since noon, and by the time",
    "Interviewer: Thank you for joining us today. Let's begin with",
    "De stad ligt aan de rivier en",
    "Vitamin D deficiency is a common cause of",
    "class Account:\n    \"\"\"A bank account.\"\"\"\n\n    def __init__(self, ",
    "Philosophers have long asked whether",
    "The railway line was opened in 1867 between",
    "Abstract: The effect of temperature on",
    "Miasto położone jest w południowej części",
    "{\n  \"name\": \"",
    "Shall I tell you, love, of how the summer",
    "The recipe comes from my grandmother, who",
    "public class Main {\n    public static void main(String[] args) {\n",
    "Economists define inflation as",
    "Türkiye'nin en büyük",
    "He was born in Vienna in 1871, the second son of",
    "\\begin{proof}\nSuppose that $f$ is continuous on $[a, b]$. Then",
    "Customer: My order hasn't arrived yet.\nAgent: ",
    "The bridge, which spans the river at a point where",
    "한국의 역사에서",
    "Chapter One\n\nIt was the kind of night when",
    "Installation\n------------\n\nTo install the package, run",
    "The court held that the defendant",
    "في عام 1950",
    "An earthquake of magnitude 6.3 struck",
    "Mr. Harris: Good evening, everyone, and welcome to",
    "# Makefile\nCC = gcc\nCFLAGS = ",
    "Music theory describes how",
    "The children ran down to the beach, where",
    "Στην αρχαία Ελλάδα",
    "The treaty was signed in Paris on",
    "Warning: do not use this device if",
    "def fibonacci(n):\n    ",
    "भारत के इतिहास में",
    "The painting, oil on canvas, shows",
    "- Hi! How was your weekend?\n- ",
];

/// A hash of all openings.
#[must_use]
pub fn fingerprint() -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for opening in OPENINGS {
        hasher.update(opening.as_bytes());
        hasher.update(&[0]);
    }
    hasher.finalize()
}

/// The openings as tokens of a model, in a seed's order.
pub struct Openings {
    tokens: Vec<Vec<Token>>,
}

impl Openings {
    /// Tokenizes the openings, each cut to a quarter of a window.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn new(model: &ggml::Model, seed: u64, window: usize) -> Result<Self> {
        let mut order: Vec<usize> = (0..OPENINGS.len()).collect();
        order.sort_by(|&a, &b| place(seed, a).total_cmp(&place(seed, b)));
        let around = |&token: &Token| Some(token) == model.first_token() || model.ends_text(token);
        let tokens = order.into_iter().map(|number| {
            let mut tokens = model.tokenize(OPENINGS[number])?;
            tokens.retain(|token| !around(token));
            tokens.truncate(window / 4);
            Ok(tokens)
        });
        Ok(Self { tokens: tokens.collect::<Result<_>>()? })
    }

    /// The opening of the text that begins at a place in a window; none of every second.
    #[must_use]
    pub fn of(&self, window: usize, at: usize) -> &[Token] {
        let number = window + at;
        if number.is_multiple_of(2) { &self.tokens[number / 2 % self.tokens.len()] } else { &[] }
    }
}

/// A uniform number in [0, 1) for a place in a window.
pub(super) fn chance(seed: u64, window: usize, at: usize) -> f64 {
    let mut hasher = blake3::Hasher::new();
    for number in [seed, window as u64, at as u64] {
        hasher.update(&number.to_le_bytes());
    }
    let mut start = [0; 8];
    hasher.finalize_xof().fill(&mut start);
    let bits = (u64::from_le_bytes(start) >> 11) as f64;
    bits / (1u64 << 53) as f64
}

/// Where an opening stands in the order of a seed. No window has that number.
fn place(seed: u64, number: usize) -> f64 {
    chance(seed, usize::MAX, number)
}
