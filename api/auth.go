package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// public are the routes below apiPrefix that ask for no key: a log's heads and keys are everybody's. A route that isn't
// named here can't be reached without a key.
var public = map[string]bool{
	"/api/v1/attestation/sth":               true,
	"/api/v1/attestation/keys":              true,
	"/api/v1/attestation/consistency-proof": true,
}

// tenantContext is the key under which a request's context holds its tenant.
type tenantContext struct{}

// authenticate finds the tenant whose API key the request bears.
func (s *Server) authenticate(c *gin.Context) {
	if !strings.HasPrefix(c.FullPath(), apiPrefix) || public[c.FullPath()] {
		return
	}
	authority := s.tenantOf
	if c.FullPath() == routeReceipt {
		authority = s.tenantOfReceipt(c.Param("delivery_id"))
	}
	tenant, err := authority(c.Request.Context(), c.Request.Header.Values("Authorization"))
	if err != nil {
		s.fail(c, err)
		return
	}
	c.Set(keyTenant, id.Tenant.Format(tenant))
	c.Request = c.Request.WithContext(context.WithValue(c.Request.Context(), tenantContext{}, tenant))
}

// tenantOf looks a key up by its hash, so that neither the database nor the time that it takes says how much of a wrong
// key is right.
func (s *Server) tenantOf(ctx context.Context, headers []string) (uuid.UUID, error) {
	unauthorized := &problem{kind: kindUnauthorized, detail: "Send a valid API key: `Authorization: Bearer kapsel_…`."}
	key := bearer(headers)
	if key == "" {
		return uuid.Nil, unauthorized
	}
	hash := sha256.Sum256([]byte(key))
	found, err := db.New(s.config.API).Authenticate(ctx, hash[:])
	if errors.Is(err, pgx.ErrNoRows) {
		return uuid.Nil, unauthorized
	}
	if err != nil {
		return uuid.Nil, fmt.Errorf("authenticate: %w", err)
	}
	return found.TenantID, nil
}

// bearer returns the one bearer token of a request, "" if it has none, or several.
func bearer(headers []string) string {
	if len(headers) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

// inTenant runs f in one transaction that sees the rows of the request's tenant only: invariant 8.
func (s *Server) inTenant(ctx context.Context, f func(tx pgx.Tx, tenant uuid.UUID) error) error {
	tenant, ok := ctx.Value(tenantContext{}).(uuid.UUID)
	if !ok {
		return errors.New("handler runs without a tenant")
	}
	return postgres.InTenant(ctx, s.config.API, tenant, func(tx pgx.Tx) error { return f(tx, tenant) })
}
