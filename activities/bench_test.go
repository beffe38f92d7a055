package activities_test

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/kapsel-io/kapsel/activities"
)

// acceptMany is accept in transactions as large as ingest makes them.
func (b *testBundle) acceptMany(t testing.TB, n int) []uuid.UUID {
	t.Helper()
	deliveries := make([]uuid.UUID, 0, n)
	for len(deliveries) < n {
		deliveries = append(deliveries, b.accept(t, min(500, n-len(deliveries)), b.destination)...)
	}
	return deliveries
}

// How many delivered attempts a second one recorder commits, for 64 callers a CPU that each wait for their own.
func BenchmarkRecord(b *testing.B) {
	bundle := setup(b)
	recorder := bundle.recorder(b)
	deliveries := bundle.acceptMany(b, b.N)
	response := activities.Response{Headers: []byte("Content-Type: text/plain\r\n"), Body: []byte("thank you")}
	var next atomic.Int64
	b.SetParallelism(64)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_, err := recorder.Record(b.Context(), activities.Recording{
				Delivery: deliveries[next.Add(1)-1], Attempt: 1, Outcome: delivered(), Response: response,
			})
			if err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "deliveries/s")
	if n := value[int](b, bundle, "select count(*) from deliveries where state = 'delivered'"); n != b.N {
		b.Fatalf("%d deliveries of %d are recorded", n, b.N)
	}
}

// How long it takes from so many queued leaves to a signed head that covers them.
func BenchmarkSeal100(b *testing.B)   { benchmarkSeal(b, 100) }
func BenchmarkSeal1000(b *testing.B)  { benchmarkSeal(b, 1000) }
func BenchmarkSeal10000(b *testing.B) { benchmarkSeal(b, 10_000) }

func benchmarkSeal(b *testing.B, leaves int) {
	bundle := setup(b)
	sealing := bundle.sealing()
	for b.Loop() {
		b.StopTimer()
		for chunk := range slices.Chunk(bundle.acceptMany(b, leaves), 500) {
			if err := bundle.deliverAll(b.Context(), chunk); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		if err := sealing.SealNow(b.Context(), bundle.log.ID); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(leaves*b.N)/b.Elapsed().Seconds(), "leaves/s")
	if n := value[int](b, bundle, "select max(tree_size) from signed_tree_heads where signature is not null"); n != leaves*b.N {
		b.Fatalf("a head of size %d is signed, want %d", n, leaves*b.N)
	}
}
