#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| onnx_graft::fuzz::served(data));
