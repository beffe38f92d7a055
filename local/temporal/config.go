package temporal

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/log"
	"go.temporal.io/server/common/membership/static"
	"go.temporal.io/server/common/persistence/sql/sqlplugin/postgresql"
	"go.temporal.io/server/common/primitives"
	"go.temporal.io/server/temporal"
)

const (
	// historyShards is for ever: the server refuses to change it once the databases exist.
	historyShards = 4
	clusterName   = "active"
	// Connections per service of this process (there are four), so at most 104 in all.
	mainConnections       = 20
	visibilityConnections = 6
	connectionLifetime    = time.Hour
	// unlimited is more than one machine can ask for. The limits protect a shared cluster, which this isn't.
	unlimited = 1_000_000
)

// newServer assembles all four services. Static hosts take the place of the gossip that a cluster uses to find its own.
func newServer(database *pgx.ConnConfig, p ports, logger log.Logger) (temporal.Server, error) {
	return temporal.NewServer(
		temporal.WithConfig(serverConfig(database, p)),
		temporal.ForServices(temporal.DefaultServices),
		temporal.WithStaticHosts(map[primitives.ServiceName]static.Hosts{
			primitives.FrontendService: static.SingleLocalHost(address(p.frontend)),
			primitives.HistoryService:  static.SingleLocalHost(address(p.history)),
			primitives.MatchingService: static.SingleLocalHost(address(p.matching)),
			primitives.WorkerService:   static.SingleLocalHost(address(p.worker)),
		}),
		temporal.WithLogger(logger),
		temporal.WithDynamicConfigClient(dynamicConfig()),
	)
}

func serverConfig(database *pgx.ConnConfig, p ports) *config.Config {
	service := func(port int) config.Service {
		return config.Service{RPC: config.RPC{GRPCPort: port, BindOnIP: host}}
	}
	frontend := service(p.frontend)
	frontend.RPC.HTTPPort = p.frontendHTTP
	return &config.Config{
		Global: config.Global{Membership: config.Membership{MaxJoinDuration: 30 * time.Second, BroadcastAddress: host}},
		Persistence: config.Persistence{
			DefaultStore:     mainDatabase,
			VisibilityStore:  visibilityDatabase,
			NumHistoryShards: historyShards,
			DataStores: map[string]config.DataStore{
				mainDatabase:       {SQL: sqlConfig(database, mainDatabase, mainConnections)},
				visibilityDatabase: {SQL: sqlConfig(database, visibilityDatabase, visibilityConnections)},
			},
		},
		ClusterMetadata: &cluster.Config{
			FailoverVersionIncrement: 10,
			MasterClusterName:        clusterName,
			CurrentClusterName:       clusterName,
			ClusterInformation: map[string]cluster.ClusterInformation{clusterName: {
				Enabled:                true,
				InitialFailoverVersion: 1,
				RPCAddress:             address(p.frontend),
				HTTPAddress:            address(p.frontendHTTP),
			}},
		},
		DCRedirectionPolicy: config.DCRedirectionPolicy{Policy: "noop"},
		Services: map[string]config.Service{
			string(primitives.FrontendService): frontend,
			string(primitives.HistoryService):  service(p.history),
			string(primitives.MatchingService): service(p.matching),
			string(primitives.WorkerService):   service(p.worker),
		},
		Archival: config.Archival{
			History:    config.HistoryArchival{State: "disabled"},
			Visibility: config.VisibilityArchival{State: "disabled"},
		},
		NamespaceDefaults: config.NamespaceDefaults{Archival: config.ArchivalNamespaceDefaults{
			History:    config.HistoryArchivalNamespaceDefaults{State: "disabled"},
			Visibility: config.VisibilityArchivalNamespaceDefaults{State: "disabled"},
		}},
		PublicClient: config.PublicClient{HostPort: address(p.frontend)},
	}
}

func sqlConfig(database *pgx.ConnConfig, name string, connections int) *config.SQL {
	return &config.SQL{
		PluginName:      postgresql.PluginNamePGX,
		ConnectProtocol: "tcp",
		ConnectAddr:     fmt.Sprintf("%s:%d", database.Host, database.Port),
		DatabaseName:    name,
		User:            database.User,
		Password:        database.Password,
		MaxConns:        connections,
		MaxIdleConns:    connections,
		MaxConnLifetime: connectionLifetime,
	}
}

// dynamicConfig is for one machine that serves one user. What isn't here is Temporal's default: eager workflow start
// (system.enableEagerWorkflowStart) is on by default in this version.
func dynamicConfig() dynamicconfig.StaticClient {
	settings := dynamicconfig.StaticClient{
		// One task-queue partition each instead of four: with one host there is nothing to spread, and a poll can't
		// wait on one partition for a task that is in another.
		dynamicconfig.MatchingNumTaskqueueReadPartitions.Key():  1,
		dynamicconfig.MatchingNumTaskqueueWritePartitions.Key(): 1,
		// Memory for a laptop, not for a server: the mutable state of 2048 workflows, some 12 KiB each. It is kept for an hour
		// when they have ended, so this is what fills up.
		dynamicconfig.HistoryCacheHostLevelMaxSize.Key(): 2048,
		// As many writes of one shard at a time: with one, four shards leave the machine idle for a tenth of the time.
		dynamicconfig.ShardIOConcurrency.Key(): 8,
		// Nothing of Kapsel's is stored outside of history, so nobody need look through each event for it.
		dynamicconfig.ExternalPayloadsEnabled.Key(): false,
		// Visibility half a second late, in larger batches: a workflow that has ended by then is written once, not twice.
		dynamicconfig.VisibilityProcessorMaxPollRPS.Key(): 2,
		dynamicconfig.VisibilityTaskBatchSize.Key():       1000,
	}
	for _, limit := range []dynamicconfig.Key{
		dynamicconfig.FrontendRPS.Key(),
		dynamicconfig.FrontendMaxNamespaceRPSPerInstance.Key(),
		dynamicconfig.FrontendMaxNamespaceVisibilityRPSPerInstance.Key(), // 10/s otherwise, which a browser tab uses up
		dynamicconfig.FrontendMaxConcurrentLongRunningRequestsPerInstance.Key(),
		dynamicconfig.FrontendPersistenceMaxQPS.Key(),
		dynamicconfig.HistoryRPS.Key(),
		dynamicconfig.HistoryPersistenceMaxQPS.Key(),
		dynamicconfig.MatchingRPS.Key(),
		dynamicconfig.MatchingPersistenceMaxQPS.Key(),
		dynamicconfig.VisibilityPersistenceMaxReadQPS.Key(),
		dynamicconfig.VisibilityPersistenceMaxWriteQPS.Key(),
	} {
		settings[limit] = unlimited
	}
	return settings
}
