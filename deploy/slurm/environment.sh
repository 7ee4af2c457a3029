# shellcheck shell=bash
# What differs from site to site: read by the batch scripts beside it, and by you before you use the command line.

# A folder that all nodes see; while there is a cluster, its address is in scheduler.json.
export RNTK_HOME=${RNTK_HOME:-$HOME/rntk}

# From deploy/tls/make-certificates; every node runs as you, and uses the same certificate.
export RNTK_TLS=${RNTK_TLS:-$HOME/rntk-tls/client}

# The network between the nodes, such as ib0, where a node has several (`ip address` lists them).
export RNTK_INTERFACE=${RNTK_INTERFACE:-}

# The same Python and the same packages on every node: pip install '.[hpc,metrics]' in an environment on a shared folder.
# module load python/3.13
# source "$HOME/rntk/venv/bin/activate"

# Once for all nodes: Numba's compiled code, known by the kind of processor.
export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$RNTK_HOME/numba-cache}

# Other users' programs run on these nodes, too, and who reaches a Dask process can run code in it: TLS for all of them.
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true
export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$RNTK_TLS/ca.crt
for role in SCHEDULER WORKER CLIENT; do
  export "DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$RNTK_TLS/tls.crt"
  export "DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$RNTK_TLS/tls.key"
done

# rntk-dist, told where the cluster is:   on_cluster submit job.toml
on_cluster() {
  if [[ ! -s $RNTK_HOME/scheduler.json ]]; then
    echo "there is no $RNTK_HOME/scheduler.json: submit scheduler.sbatch, and wait until it runs" >&2
    return 1
  fi
  local read_address='import json, sys; print(json.load(open(sys.argv[1]))["address"])'
  rntk-dist "$@" --scheduler "$(python -c "$read_address" "$RNTK_HOME/scheduler.json")"
}
