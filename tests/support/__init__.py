"""What tests share: servers, a database, a browser, raw HTTP, fuzzers."""
