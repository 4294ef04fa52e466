//! The models of this crate, tiny and random, from the outside. Their agreement with `transformers` is tested by the
//! golden vectors of `ruminate-conformance`.

mod any;
mod arguments;
mod beam;
mod bfloat16;
mod checkpoint;
mod config;
mod decoding;
mod generation;
mod generation_defaults;
mod gguf;
mod listener;
mod llama;
mod llama_config;
mod llama_writing;
mod malformed;
mod packing;
mod padding;
mod resize;
mod scoring;
mod smollm2;
mod stop_strings;
mod streaming;
mod support;
mod text_stream;
mod tokenizer;
mod training;
mod transformers;
mod vera;
