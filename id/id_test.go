package id

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestFormatAndParseAreInverse(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var u uuid.UUID
		copy(u[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid"))
		got, err := Event.Parse(Event.Format(u))
		require.NoError(t, err)
		require.Equal(t, u, got)
	})
}

func TestParseRejectsEverythingElse(t *testing.T) {
	t.Parallel()
	good := Event.Format(New())
	for _, s := range []string{
		"", "evt_", "evt", Delivery.Format(New()), strings.ToUpper(good), good + "0", good[:len(good)-1],
		" " + good, good + "\n", "evt_8zzzzzzzzzzzzzzzzzzzzzzzzz", uuid.NewString(), "evt_01h455vb4pex5vsknk084sn02u",
	} {
		_, err := Event.Parse(s)
		require.Error(t, err, "%q", s)
	}
}

func TestAttemptOfIsDeterministicAndDistinct(t *testing.T) {
	t.Parallel()
	d := New()
	require.Equal(t, AttemptOf(d, 1), AttemptOf(d, 1))
	require.NotEqual(t, AttemptOf(d, Decision), AttemptOf(d, 1))
	require.NotEqual(t, AttemptOf(d, 1), AttemptOf(At(d), 1))
	require.Equal(t, Time(d), Time(AttemptOf(d, 3)))
	require.EqualValues(t, 7, AttemptOf(d, 3).Version())
	require.Equal(t, uuid.RFC4122, AttemptOf(d, 3).Variant())
	require.Equal(t, Time(d), Time(At(d)))
}
