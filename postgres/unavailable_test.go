package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// What passes by itself is answered 503 and tried again; what doesn't, isn't.
func TestUnavailableIsWhatPassesByItself(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]bool{
		"08006": true, "53100": true /* disk full */, "53200": true /* memory */, "53300": true, /* too many connections */
		"57014": true /* statement timeout */, "57P01": true, "57P03": true /* starting up */, "58030": true, "25006": true, /* a standby */
		"22P02": false, "23505": false, "42501": false, "42P01": false, "40001": false, "25001": false,
	} {
		require.Equal(t, want, Unavailable(fmt.Errorf("accept: %w", &pgconn.PgError{Code: code})), code)
	}
	for _, err := range []error{ErrAway, ErrReadOnly, ErrUnknown, io.ErrUnexpectedEOF, context.DeadlineExceeded} {
		require.True(t, Unavailable(fmt.Errorf("accept: %w", err)), err)
	}
	require.False(t, Unavailable(errors.New("another")))
	require.False(t, Unavailable(nil))
}
