package api_test

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api"
)

// BenchmarkIngest accepts webhooks of 1 KiB over HTTP, each committed before its 200: one caller after the other, and 64
// at once, who share commits.
func BenchmarkIngest(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) { ingestAtOnce(b, callers) })
	}
}

func ingestAtOnce(b *testing.B, callers int, configure ...func(*api.Config)) {
	site := setup(b, configure...)
	endpoint := site.endpoint(b)
	body := strings.Repeat("x", 1024)
	b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
	b.ReportAllocs()
	if callers == 1 {
		for b.Loop() {
			require.Equal(b, 200, site.ingest(b, endpoint, body).status)
		}
		return
	}
	var failed atomic.Int64
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			a, err := site.try(b.Context(), "POST", "/ingest/"+endpoint, strings.NewReader(body))
			if err != nil || a.status != 200 {
				failed.Add(1)
			}
		}
	})
	require.Zero(b, failed.Load())
}

// BenchmarkProof reads inclusion proofs and whole packages of attempts in a log of 1,000 leaves, over HTTP.
func BenchmarkProof(b *testing.B) {
	site := setup(b)
	endpoint := site.endpoint(b)
	var attempts []string
	for i := range 1000 {
		attempts = append(attempts, site.attempted(b, endpoint, fmt.Sprint(i)))
	}
	site.seal(b)
	for name, path := range map[string]string{"inclusion": "/api/v1/attestation/proof/", "package": "/api/v1/attestation/download-proof/"} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				a := site.do(b, "GET", path+attempts[i%len(attempts)], io.Reader(nil), "Authorization", "Bearer "+site.key)
				require.Equal(b, 200, a.status)
			}
		})
	}
}
