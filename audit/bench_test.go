package audit_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/audit"
)

const benchLeaves = 50_000

func benchLog(b *testing.B) *testBundle {
	log := setup(b)
	for range benchLeaves / 10_000 {
		log.queue(b, log.tenant, 10_000)
	}
	log.seal(b)
	log.exec(b, "analyze merkle_leaves, leaf_of_attempt, merkle_tiles")
	return log
}

// How many leaves a second are checked, with everything that belongs to them.
func BenchmarkFsck(b *testing.B) {
	log := benchLog(b)
	for b.Loop() {
		report, err := audit.Fsck(b.Context(), audit.FsckConfig{DB: log.engine, Log: log.row})
		require.NoError(b, err)
		require.True(b, report.Sound)
	}
	b.ReportMetric(benchLeaves*float64(b.N)/b.Elapsed().Seconds(), "leaves/s")
}

func BenchmarkExport(b *testing.B) {
	log := benchLog(b)
	for b.Loop() {
		log.export(b, b.TempDir())
	}
	b.ReportMetric(benchLeaves*float64(b.N)/b.Elapsed().Seconds(), "leaves/s")
}

func BenchmarkBundle(b *testing.B) {
	log := benchLog(b)
	for b.Loop() {
		log.bundle(b, log.tenant, b.TempDir())
	}
	b.ReportMetric(benchLeaves*float64(b.N)/b.Elapsed().Seconds(), "leaves/s")
}

func BenchmarkRebuild(b *testing.B) {
	log := benchLog(b)
	mirror := b.TempDir()
	log.export(b, mirror)
	for b.Loop() {
		b.StopTimer()
		target := log.fresh(b)
		b.StartTimer()
		log.rebuild(b, target, mirror)
	}
	b.ReportMetric(benchLeaves*float64(b.N)/b.Elapsed().Seconds(), "leaves/s")
}
