package api

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhoAcceptsGzip(t *testing.T) {
	t.Parallel()
	for _, accept := range [][]string{{"gzip"}, {"GZIP"}, {"x-gzip"}, {"br", "gzip"}, {"deflate, gzip;q=0.001"}, {"gzip ; Q=1.0"}, {"*"}, {"identity;q=0, *;q=0.1"}, {"*;q=0, gzip"}} {
		require.True(t, acceptsGzip(accept), accept)
	}
	for _, accept := range [][]string{nil, {""}, {"identity"}, {"gzip;q=0"}, {"gzip; q=0.000, *"}, {"*;q=0"}, {"gzip;q=x"}, {"gzipped"}, {"br;q=1"}, {"gzip;q=nan"}, {"gzip;q=-1"}} {
		require.False(t, acceptsGzip(accept), accept)
	}
}
