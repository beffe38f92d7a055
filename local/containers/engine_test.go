package containers

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

// With an engine: the image is built, and its containers prepare the database and accept requests, restricted as in the compose
// file. Skipped, with the reason, where no engine runs or it can't get Postgres' image.
func TestTheContainersStart(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds an image")
	}
	testcontainers.SkipIfProviderIsNotHealthy(t)
	p := project(t)
	net, err := network.New(t.Context())
	if err != nil {
		t.Skipf("the engine makes no network: %v", err)
	}
	testcontainers.CleanupNetwork(t, net)

	database := p.Services["postgres"]
	postgres, err := testcontainers.GenericContainer(t.Context(), testcontainers.GenericContainerRequest{Started: true, ContainerRequest: testcontainers.ContainerRequest{
		Image: database.Image, Cmd: database.Command, Env: valuesOf(database.Environment),
		Networks: []string{net.Name}, NetworkAliases: map[string][]string{net.Name: {"postgres"}},
		Files: []testcontainers.ContainerFile{{
			HostFilePath: filepath.Join(root(t), "deploy", "postgres", "init.sh"), ContainerFilePath: "/docker-entrypoint-initdb.d/init.sh", FileMode: 0o755,
		}},
		WaitingFor: wait.ForExec([]string{"pg_isready", "-q", "-h", "127.0.0.1", "-U", "kapsel", "-d", "kapsel"}).WithStartupTimeout(2 * time.Minute),
	}})
	testcontainers.CleanupContainer(t, postgres)
	if err != nil {
		t.Skipf("the engine can't start %s: %v", database.Image, err)
	}

	migrate := p.Services["migrate"]
	image := testcontainers.FromDockerfile{Context: root(t), Dockerfile: filepath.Join("deploy", "Dockerfile"), Repo: "kapsel-test", Tag: "test", KeepImage: true}
	start := func(command []string, environment map[string]string, until wait.Strategy, ports ...string) testcontainers.Container {
		request := testcontainers.ContainerRequest{
			FromDockerfile: image, Cmd: command, Env: environment, Networks: []string{net.Name}, ExposedPorts: ports, WaitingFor: until,
			HostConfigModifier: func(host *container.HostConfig) {
				host.ReadonlyRootfs, host.CapDrop, host.SecurityOpt = migrate.ReadOnly, migrate.CapDrop, migrate.SecurityOpt
			},
		}
		c, err := testcontainers.GenericContainer(t.Context(), testcontainers.GenericContainerRequest{Started: true, ContainerRequest: request})
		testcontainers.CleanupContainer(t, c)
		require.NoError(t, err)
		return c
	}
	migrated := start(migrate.Command, valuesOf(migrate.Environment), wait.ForExit().WithExitTimeout(5*time.Minute))
	state, err := migrated.State(t.Context())
	require.NoError(t, err)
	require.Zero(t, state.ExitCode)

	api := p.Services["api-1"]
	running := start(api.Command, valuesOf(api.Environment), wait.ForHTTP("/health/ready").WithPort("8080/tcp"), "8080/tcp")
	code, _, err := running.Exec(t.Context(), api.HealthCheck.Test[1:])
	require.NoError(t, err)
	require.Zero(t, code, "the compose file's own health check")
	require.NoError(t, running.Stop(t.Context(), nil))
	state, err = running.State(t.Context())
	require.NoError(t, err)
	require.Zero(t, state.ExitCode, "it ends in order")
}

func valuesOf(environment map[string]*string) map[string]string {
	values := map[string]string{}
	for name, value := range environment {
		values[name] = *value
	}
	return values
}
