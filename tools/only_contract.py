"""An import-linter contract that lists what a module may import, as the design's table does.

import-linter's own contracts say what is forbidden, so a dependency nobody thought of passes them.
This one turns that round: what is not on the list is refused.
"""

import sys
from fnmatch import fnmatchcase

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

STDLIB = "@stdlib"  # stands for every module of the standard library


class OnlyContract(Contract):
    """Modules that may import, directly, only what is listed.

    Configuration options:
        - modules: the modules bound by the contract, each with everything below it.
        - allowed: the modules they may import: a name, which covers that module alone, a name with
          the wildcard ``*``, or ``@stdlib``. A package from elsewhere goes by its top-level name.
    """

    type_name = "only"

    modules = fields.ListField(subfield=fields.StringField())
    allowed = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        refused = [
            (importer, imported)
            for module in self.modules
            for importer in sorted({module, *graph.find_descendants(module)})
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if not self._allows(imported)
        ]
        lines = [
            f"- {importer} -> {imported} (l.{detail['line_number']})"
            for importer, imported in refused
            for detail in graph.get_import_details(importer=importer, imported=imported)
        ]
        return ContractCheck(kept=not refused, metadata={"lines": lines})

    def _allows(self, imported: str) -> bool:
        if STDLIB in self.allowed and imported in sys.stdlib_module_names:
            return True
        return any(fnmatchcase(imported, pattern) for pattern in self.allowed)

    def render_broken_contract(self, check: ContractCheck) -> None:
        output.print_error(f"Allowed are only {', '.join(sorted(self.allowed))}:", bold=False)
        for line in check.metadata["lines"]:
            output.print_error(line, bold=False)
        output.new_line()
