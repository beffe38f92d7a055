package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// noReceipt is the answer to whatever is wrong with a token: whether there is such a delivery is none of the asker's business.
func noReceipt() error {
	return &problem{kind: kindNotFound, detail: "There is no such receipt. Send `Authorization: Bearer` and the Kapsel-Proof-Token of " +
		"the delivery, and the numbers that came with it."}
}

// tenantOfReceipt finds the tenant of a delivery for whoever bears its proof token. Without the token, nothing but one look-up by
// primary key is done, and what it finds shows neither in the answer nor in what is computed for it.
func (s *Server) tenantOfReceipt(name string) func(ctx context.Context, headers []string) (uuid.UUID, error) {
	return func(ctx context.Context, headers []string) (uuid.UUID, error) {
		delivery, err := id.Delivery.Parse(name)
		if err != nil {
			return uuid.Nil, noReceipt()
		}
		found, err := s.proofKey(ctx, delivery)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return uuid.Nil, fmt.Errorf("read proof key: %w", err)
		}
		known := err == nil
		if !known {
			found.ProofKey = make([]byte, sha256.Size)
		}
		if !attestation.IsProofToken(found.ProofKey, name, bearer(headers)) || !known {
			return uuid.Nil, noReceipt()
		}
		return found.TenantID, nil
	}
}

// proofKeysAtOnce is how many connections those may take together who have no key yet, so that they can't take them all from
// the way in.
const proofKeysAtOnce = 2

func (s *Server) proofKey(ctx context.Context, delivery uuid.UUID) (db.ProofKeyOfDeliveryRow, error) {
	select {
	case s.proofKeys <- struct{}{}:
		defer func() { <-s.proofKeys }()
		return db.New(s.config.Engine).ProofKeyOfDelivery(ctx, []uuid.UUID{delivery})
	case <-ctx.Done():
		return db.ProofKeyOfDeliveryRow{}, ctx.Err()
	}
}

// DownloadReceipt hands out the proof package of an attempt to its receiver, whom authenticate has let through.
func (s *Server) DownloadReceipt(ctx context.Context, request openapi.DownloadReceiptRequestObject) (openapi.DownloadReceiptResponseObject, error) {
	delivery, err := id.Delivery.Parse(request.DeliveryID)
	if err != nil {
		return nil, noReceipt()
	}
	number, err := strconv.ParseUint(request.AttemptNumber, 10, 31)
	if err != nil || strconv.FormatUint(number, 10) != request.AttemptNumber {
		return nil, noReceipt()
	}
	attempt := id.Attempt.Format(id.AttemptOf(delivery, int(number)))
	answer, err := s.download(ctx, attempt, request.Params.Format, request.Params.TreeSize, request.Params.IfNoneMatch)
	var wait notSealedError
	var p *problem
	switch {
	case errors.As(err, &wait):
		return openapi.DownloadReceipt202JSONResponse{PendingJSONResponse: wait.answer(attempt)}, nil
	case errors.As(err, &p) && p.kind == kindNotFound && p.field == "":
		return nil, noReceipt()
	case err != nil:
		return nil, err
	}
	return answer, nil
}

// RevokeProofTokens makes all tokens of the tenant worthless.
func (s *Server) RevokeProofTokens(ctx context.Context, _ openapi.RevokeProofTokensRequestObject) (openapi.RevokeProofTokensResponseObject, error) {
	err := s.inTenant(ctx, func(tx pgx.Tx, tenant uuid.UUID) error {
		n, err := db.New(tx).RevokeProofTokens(ctx, tenant)
		if err == nil && n != 1 {
			return errors.New("the tenant is gone")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("revoke proof tokens: %w", err)
	}
	return openapi.RevokeProofTokens204Response{}, nil
}
