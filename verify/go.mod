module github.com/kapsel-io/kapsel/verify

go 1.26.0

require (
	filippo.io/edwards25519 v1.2.0
	github.com/transparency-dev/merkle v0.0.2
)

require (
	github.com/google/go-cmp v0.7.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/tools v0.52.0 // indirect
)

// Only the tests need these.
require (
	github.com/gowebpki/jcs v1.0.2
	github.com/rogpeppe/go-internal v1.16.0
	golang.org/x/mod v0.42.0
	pgregory.net/rapid v1.3.0
)
