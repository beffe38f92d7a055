package bench

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLedgerCountsEachWebhookOnce(t *testing.T) {
	t.Parallel()
	l := newLedger()
	var all sync.WaitGroup
	const webhooks = 3 * chunkSize
	for range 4 {
		all.Go(func() {
			for range webhooks / 4 {
				sequence := l.begin()
				l.answer(sequence, sequence%10 != 0, sequence%100 == 1)
				l.take(sequence)
			}
		})
	}
	all.Wait()
	l.take(5)
	l.take(-1)
	l.take(webhooks + chunkSize) // was never sent
	require.EqualValues(t, webhooks, l.delivered.Load())
	require.EqualValues(t, 1, l.again.Load())
	require.EqualValues(t, webhooks, l.accepted.Load()+l.refused.Load())
	require.EqualValues(t, (webhooks+9)/10, l.refused.Load())
	require.EqualValues(t, (webhooks+98)/100, l.stuck.Load())
}

func TestDistribution(t *testing.T) {
	t.Parallel()
	var times []int64
	for i := range int64(1000) {
		times = append(times, (1000-i)*1e6)
	}
	require.Equal(t, Latency{P50: 501, P95: 951, P99: 991, Max: 1000}, distribution(times))
	require.Zero(t, distribution(nil))
}

func TestAResultSaysWhatMustNotBe(t *testing.T) {
	t.Parallel()
	require.NoError(t, Result{Accepted: 1}.Err())
	require.NoError(t, Result{Accepted: 1, Lane: LaneNone}.Err())
	for _, bad := range []Result{{}, {Accepted: 1, Lost: 1}, {Accepted: 1, Duplicated: 1}, {Accepted: 1, Unattested: 1}, {Accepted: 1, AttestedTwice: 1}} {
		require.Error(t, bad.Err())
	}
}

func TestASoakFailsOnGrowth(t *testing.T) {
	t.Parallel()
	soakOf := func(grow func(i int64) soakSample) error {
		s := &soak{stop: func() {}}
		for i := range int64(30) {
			s.samples = append(s.samples, grow(i))
		}
		return s.end()
	}
	steady := soakSample{heap: 200 << 20, queue: 500, tables: 50 << 20}
	require.NoError(t, soakOf(func(int64) soakSample { return steady }))
	require.ErrorContains(t, soakOf(func(i int64) soakSample { return soakSample{cpu: 500_000 + 50_000*i} }), "CPU")
	require.ErrorContains(t, soakOf(func(i int64) soakSample { return soakSample{heap: (200 + 20*i) << 20} }), "heap")
	require.ErrorContains(t, soakOf(func(i int64) soakSample { return soakSample{queue: 5000 * i} }), "queued")
	require.ErrorContains(t, soakOf(func(i int64) soakSample { return soakSample{tables: i << 24} }), "tables")
	require.ErrorContains(t, (&soak{stop: func() {}}).end(), "at least 3 minutes")
}
