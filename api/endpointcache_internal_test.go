package api

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a process remembers of an endpoint says when each secret ends; none outlives that by the time it is remembered.
func TestRememberedSecretsExpire(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_800_000_000_000)
	e := &endpoint{secrets: []sourceSecret{{value: []byte("old"), expires: now}, {value: []byte("new")}}}
	require.Equal(t, [][]byte{[]byte("old"), []byte("new")}, e.validSecrets(now.Add(-time.Millisecond)))
	require.Equal(t, [][]byte{[]byte("new")}, e.validSecrets(now))
}
