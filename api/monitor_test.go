package api_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/verify"
	"github.com/kapsel-io/kapsel/verify/monitor"
)

// A stranger's monitor follows what the server publishes, over sizes that are powers of two and others.
func TestAMonitorFollowsTheLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint, dir := b.endpoint(t), t.TempDir()
	m, err := monitor.New(monitor.Config{
		URL: b.url + "/log/" + id.Log.Format(b.log.ID), PublicKey: b.log.PublicKey, Origin: b.log.Origin,
		State: filepath.Join(dir, "state.json"), Evidence: dir,
	})
	require.NoError(t, err)
	size := 0
	for _, next := range []int{1, 2, 3, 8, 9, 256, 300} {
		for ; size < next; size++ {
			b.attempted(t, endpoint, fmt.Sprintf(`{"n":%d}`, size))
		}
		head := b.seal(t)
		report, err := m.Check(t.Context())
		require.NoError(t, err)
		require.Equal(t, verify.Consistent, report.Verdict)
		require.Equal(t, head.TreeSize, report.Head.TreeSize)
	}
}

// The packages of one delivery, as they are downloaded, make a complete chain.
func TestDownloadedPackagesMakeAChain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	delivery := b.deliveryOf(t, acceptedID(t, b.ingest(t, b.endpoint(t), `{"n":1}`)))
	var packages [][]byte
	for number, outcome := range []string{"retry", "retry", "failed"} {
		b.record(t, delivery, outcome, outcome == "failed")
		b.seal(t)
		a := b.get(t, "/api/v1/attestation/download-proof/"+id.Attempt.Format(id.AttemptOf(delivery, number+1)))
		require.Equal(t, 200, a.status, "%s", a.body)
		packages = append(packages, a.body)
	}
	chain, err := verify.Delivery(packages, verify.Options{VKey: b.log.VKey})
	require.NoError(t, err)
	require.Equal(t, []string{`leaf 4, of kind "dead": it has to follow the final failure`}, chain.Missing)

	a := b.get(t, "/api/v1/attestation/download-proof/"+id.Attempt.Format(id.AttemptOf(delivery, id.Decision)))
	require.Equal(t, 200, a.status, "%s", a.body)
	chain, err = verify.Delivery(append(packages, a.body), verify.Options{VKey: b.log.VKey})
	require.NoError(t, err)
	require.True(t, chain.Complete())
	require.Equal(t, "dead", chain.Terminal().Kind)
	require.Empty(t, chain.Warnings)
}
