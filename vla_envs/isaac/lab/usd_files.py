"""An entity as a USD file: bodies, joints, collision shapes and looks, with MuJoCo's own numbers beside USD's.

    /<entity>                   articulation root, where it has joints
    /<entity>/<body>            rigid body at its pose in the model's initial posture, in the frame of the entity's root
    /<entity>/<body>/<geom>     collision shape (purpose guide: not drawn) or look (drawn, does not collide)
    /<entity>/joints, looks, contact

Newton reads the `mjc:` attributes; other engines go by USD's own. Files are named by what is in them, so that tasks share those
of the same objects. The only module that needs `pxr`.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import mujoco
import numpy as np

from vla_envs.errors import MissingDependencyError
from vla_envs.isaac.lab.entities import Entity, Kind, body_path, joints_of, prim_name
from vla_envs.isaac.lab.surfaces import Surface, linear, mesh_of, surface_of

try:
    from PIL import Image
    from pxr import Gf, Sdf, Usd, UsdGeom, UsdPhysics, UsdShade, Vt
except ImportError as error:
    raise MissingDependencyError(
        f"converting tasks needs OpenUSD and Pillow: pip install 'vla-envs[libero,usd]' ({error})"
    ) from error

_log = logging.getLogger(__name__)

_VISIBLE_GROUP = 1
"""Geoms that LIBERO shows; group 0 holds collision shapes."""
_MAX_TEXTURE_PIXELS = 512
"""Height and width of a picture at most: the renderer takes the nearest pixels, so larger ones would only flicker."""


class EntityWriter:
    """Writes the entities of scenes into one folder.

    Args:
        folder: Receives `assets/*.usdc` and `textures/*.png`.
    """

    def __init__(self, folder: Path) -> None:
        self._assets, self._textures = folder / "assets", folder / "textures"
        for made in (self._assets, self._textures):
            made.mkdir(parents=True, exist_ok=True)

    def write(self, model: mujoco.MjModel, entity: Entity) -> Path:
        """The file of an entity, written unless an equal one is there."""
        draft = self._assets / f".{entity.name}.{os.getpid()}.usdc"
        try:
            stage = Usd.Stage.CreateNew(str(draft))
            _Draft(stage, model, entity, self._texture).fill()
            stage.GetRootLayer().Save()
            del stage
            digest = hashlib.sha256(draft.read_bytes()).hexdigest()[:16]
            file = self._assets / f"{entity.name}-{digest}.usdc"
            if not file.exists():
                os.replace(draft, file)
            return file
        finally:
            draft.unlink(missing_ok=True)

    def _texture(self, pixels: np.ndarray) -> str:
        """A picture's path relative to the entities' files."""
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        file = self._textures / f"{digest}.png"
        if not file.exists():
            image = Image.fromarray(pixels)
            image.thumbnail((_MAX_TEXTURE_PIXELS, _MAX_TEXTURE_PIXELS * max(1, image.height // image.width)))
            draft = file.with_name(f".{digest}.{os.getpid()}.png")
            image.save(draft)
            os.replace(draft, file)
        return f"../textures/{file.name}"


class _Draft:
    """One entity being written."""

    def __init__(self, stage, model: mujoco.MjModel, entity: Entity, texture) -> None:  # type: ignore[no-untyped-def]
        self._stage, self._model, self._entity, self._texture = stage, model, entity, texture
        self._root = f"/{entity.name}"
        self._data = mujoco.MjData(model)
        mujoco.mj_kinematics(model, self._data)
        mujoco.mj_comPos(model, self._data)
        self._materials: dict[str, UsdShade.Material] = {}

    def fill(self) -> None:
        """Write everything."""
        UsdGeom.SetStageUpAxis(self._stage, UsdGeom.Tokens.z)
        UsdGeom.SetStageMetersPerUnit(self._stage, 1.0)
        root = UsdGeom.Xform.Define(self._stage, self._root)
        self._stage.SetDefaultPrim(root.GetPrim())
        if self._entity.kind in (Kind.ROBOT, Kind.FIXTURE):
            UsdPhysics.ArticulationRootAPI.Apply(root.GetPrim())
        for body in self._entity.bodies:
            self._write_body(body)
        if self._entity.kind in (Kind.ROBOT, Kind.FIXTURE):
            for body in self._entity.bodies:
                self._write_joint(body)
        self._write_filters()

    def _body_path(self, body: int) -> str:
        return f"{self._root}/{body_path(self._model, self._entity, body)}"

    def _write_body(self, body: int) -> None:
        prim = UsdGeom.Xform.Define(self._stage, self._body_path(body))
        place, turn = self._in_entity(body)
        _set_pose(prim, place, turn)
        if self._entity.kind in (Kind.ROBOT, Kind.FIXTURE) or (self._entity.kind is Kind.OBJECT and body == self._entity.root):
            self._write_mass(prim.GetPrim(), body)
        first = int(self._model.body_geomadr[body])
        for geom in range(first, first + int(self._model.body_geomnum[body])):
            self._write_geom(geom)

    def _in_entity(self, body: int) -> tuple[np.ndarray, np.ndarray]:
        """Position and quaternion w x y z of a body in its entity's frame, in the model's initial posture."""
        root, data = self._entity.root, self._data
        place, turn, back = np.zeros(3), np.zeros(4), np.zeros(4)
        mujoco.mju_negQuat(back, data.xquat[root])
        mujoco.mju_rotVecQuat(place, data.xpos[body] - data.xpos[root], back)
        mujoco.mju_mulQuat(turn, back, data.xquat[body])
        return place, turn

    def _write_mass(self, prim, body: int) -> None:  # type: ignore[no-untyped-def]
        UsdPhysics.RigidBodyAPI.Apply(prim)
        parts = self._entity.bodies if self._entity.kind is Kind.OBJECT else (body,)
        total = float(self._model.body_mass[list(parts)].sum())
        if total == 0.0:
            return
        centre, moments, axes = self._inertia(parts, body)
        mass = UsdPhysics.MassAPI.Apply(prim)
        mass.CreateMassAttr(total)
        mass.CreateCenterOfMassAttr(Gf.Vec3f(*centre.tolist()))
        mass.CreateDiagonalInertiaAttr(Gf.Vec3f(*moments.tolist()))
        mass.CreatePrincipalAxesAttr(_quaternion(axes, Gf.Quatf))

    def _inertia(self, parts: tuple[int, ...], body: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre of mass, principal moments and their axes (w x y z) of bodies fixed to each other, in the frame of `body`."""
        model, data = self._model, self._data
        if len(parts) == 1:
            return model.body_ipos[body], model.body_inertia[body], model.body_iquat[body]
        masses, frame = model.body_mass[list(parts)], data.xmat[body].reshape(3, 3)
        centre = masses @ data.xipos[list(parts)] / masses.sum()
        inertia = np.zeros((3, 3))
        for part, mass in zip(parts, masses, strict=True):
            axes, away = data.ximat[part].reshape(3, 3), data.xipos[part] - centre
            inertia += axes @ np.diag(model.body_inertia[part]) @ axes.T
            inertia += mass * (away @ away * np.eye(3) - np.outer(away, away))
        moments, columns = np.linalg.eigh(frame.T @ inertia @ frame)
        columns[:, 2] *= np.sign(np.linalg.det(columns))
        turn = np.zeros(4)
        mujoco.mju_mat2Quat(turn, columns.ravel())
        return frame.T @ (centre - data.xpos[body]), moments, turn

    def _write_joint(self, body: int) -> None:
        """The joint that holds a body: to its parent, or the root to the world."""
        model = self._model
        folder = UsdGeom.Scope.Define(self._stage, f"{self._root}/joints").GetPath()
        joints = joints_of(model, body)
        place, turn = (np.zeros(3), np.array([1.0, 0, 0, 0])) if body == self._entity.root else _pose_in_parent(model, body)
        if not joints:
            joint = UsdPhysics.FixedJoint.Define(self._stage, f"{folder}/{prim_name(model.body(body).name)}_fixed")
            anchor, own_turn = np.zeros(3), np.array([1.0, 0, 0, 0])
        else:
            joint = self._moving_joint(f"{folder}/{prim_name(model.joint(joints[0]).name)}", joints[0])
            anchor, own_turn = model.jnt_pos[joints[0]], _turn_of_x_onto(model.jnt_axis[joints[0]])
        if body != self._entity.root:
            joint.CreateBody0Rel().SetTargets([Sdf.Path(self._body_path(int(model.body_parentid[body])))])
        joint.CreateBody1Rel().SetTargets([Sdf.Path(self._body_path(body))])
        parent_turn, parent_anchor = np.zeros(4), np.zeros(3)
        mujoco.mju_mulQuat(parent_turn, turn, own_turn)
        mujoco.mju_rotVecQuat(parent_anchor, np.asarray(anchor, float), turn)
        joint.CreateLocalPos0Attr(Gf.Vec3f(*(place + parent_anchor).tolist()))
        joint.CreateLocalRot0Attr(_quaternion(parent_turn, Gf.Quatf))
        joint.CreateLocalPos1Attr(Gf.Vec3f(*np.asarray(anchor, float).tolist()))
        joint.CreateLocalRot1Attr(_quaternion(own_turn, Gf.Quatf))
        joint.CreateCollisionEnabledAttr(True)  # MuJoCo itself leaves out parents and children

    def _moving_joint(self, path: str, joint_id: int):  # type: ignore[no-untyped-def]
        model, dof = self._model, int(self._model.jnt_dofadr[joint_id])
        turns = model.jnt_type[joint_id] == mujoco.mjtJoint.mjJNT_HINGE
        kind = UsdPhysics.RevoluteJoint if turns else UsdPhysics.PrismaticJoint
        joint = kind.Define(self._stage, path)
        joint.CreateAxisAttr("X")
        if model.jnt_limited[joint_id]:
            low, high = (np.degrees(model.jnt_range[joint_id]) if turns else model.jnt_range[joint_id]).tolist()
            joint.CreateLowerLimitAttr(low)
            joint.CreateUpperLimitAttr(high)
        _set_mujoco(
            joint.GetPrim(),
            "MjcJointAPI",
            damping=model.dof_damping[dof],
            frictionloss=model.dof_frictionloss[dof],
            armature=model.dof_armature[dof],
            stiffness=model.jnt_stiffness[joint_id],
            springref=model.qpos_spring[model.jnt_qposadr[joint_id]],
            margin=model.jnt_margin[joint_id],
            solreflimit=model.jnt_solref[joint_id],
            solimplimit=model.jnt_solimp[joint_id],
            solreffriction=model.dof_solref[dof],
            solimpfriction=model.dof_solimp[dof],
        )
        return joint

    def _write_geom(self, geom: int) -> None:
        model, path = self._model, self._geom_path(geom)
        if _collides(model, geom):
            self._write_collider(path, geom)
        if model.geom_group[geom] == _VISIBLE_GROUP:
            surface = surface_of(model, geom)
            if surface is not None:
                self._write_look(f"{path}_look", geom, surface)

    def _write_collider(self, path: str, geom: int) -> None:
        shape = _collision_shape(self._stage, path, self._model, geom)
        if shape is None:
            _log.warning("%s: its %s does not collide: USD has no such shape", path, _geom_type(self._model, geom).name)
            return
        model, prim = self._model, shape.GetPrim()
        _set_pose(shape, model.geom_pos[geom], model.geom_quat[geom], _collision_scale(model, geom))
        shape.CreatePurposeAttr(UsdGeom.Tokens.guide)
        UsdPhysics.CollisionAPI.Apply(prim)
        _set_mujoco(
            prim,
            "MjcCollisionAPI",
            contype=int(model.geom_contype[geom]),
            conaffinity=int(model.geom_conaffinity[geom]),
            condim=int(model.geom_condim[geom]),
            group=int(model.geom_group[geom]),
            priority=int(model.geom_priority[geom]),
            solmix=model.geom_solmix[geom],
            solref=model.geom_solref[geom],
            solimp=model.geom_solimp[geom],
            margin=model.geom_margin[geom],
            gap=model.geom_gap[geom],
        )
        UsdShade.MaterialBindingAPI.Apply(prim).Bind(self._friction(model.geom_friction[geom]), materialPurpose="physics")

    def _write_filters(self) -> None:
        """Pairs of shapes of this entity that MuJoCo's contype and conaffinity keep apart: Newton makes its own of both."""
        model = self._model
        own = np.flatnonzero(np.isin(model.geom_bodyid, self._entity.bodies)).tolist()
        geoms = [geom for geom in own if _collides(model, geom)]
        for index, first in enumerate(geoms):
            apart = [second for second in geoms[index + 1 :] if not _may_touch(model, first, second)]
            if apart:
                pairs = UsdPhysics.FilteredPairsAPI.Apply(self._stage.GetPrimAtPath(self._geom_path(first)))
                pairs.CreateFilteredPairsRel().SetTargets([Sdf.Path(self._geom_path(second)) for second in apart])

    def _geom_path(self, geom: int) -> str:
        return f"{self._body_path(int(self._model.geom_bodyid[geom]))}/{geom_prim(self._model, geom)}"

    def _friction(self, friction: np.ndarray) -> UsdShade.Material:
        slide, spin, roll = friction.tolist()
        name = prim_name(f"friction_{slide:g}_{spin:g}_{roll:g}")
        if name not in self._materials:
            material = self._materials[name] = UsdShade.Material.Define(self._stage, f"{self._root}/contact/{name}")
            physics = UsdPhysics.MaterialAPI.Apply(material.GetPrim())
            physics.CreateStaticFrictionAttr(slide)
            physics.CreateDynamicFrictionAttr(slide)
            physics.CreateRestitutionAttr(0.0)
            _set_mujoco(material.GetPrim(), "MjcMaterialAPI", torsionalfriction=spin, rollingfriction=roll)
        return self._materials[name]

    def _write_look(self, path: str, geom: int, surface: Surface) -> None:
        mesh = UsdGeom.Mesh.Define(self._stage, path)
        _set_pose(mesh, self._model.geom_pos[geom], self._model.geom_quat[geom])
        _set_triangles(mesh, surface.points, surface.faces)
        mesh.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(surface.normals))
        mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
        mesh.CreateDoubleSidedAttr(False)
        if surface.texture is not None:
            uvs = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex)
            uvs.Set(Vt.Vec2fArray.FromNumpy(surface.uvs))
        UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(self._look(surface))
        _set_label(mesh.GetPrim(), "class", self._entity.name)
        _set_label(mesh.GetPrim(), "look", look_label(self._model, geom))

    def _look(self, surface: Surface) -> UsdShade.Material:
        source = None if surface.texture is None else self._texture(surface.texture)
        key = f"{source}{surface.rgba}"
        if key in self._materials:
            return self._materials[key]
        path = f"{self._root}/looks/look_{len(self._materials)}"
        material = self._materials[key] = UsdShade.Material.Define(self._stage, path)
        shader = UsdShade.Shader.Define(self._stage, f"{path}/surface")
        shader.CreateIdAttr("UsdPreviewSurface")
        colour = shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
        if surface.rgba[3] < 1.0:
            shader.CreateInput("opacity", Sdf.ValueTypeNames.Float).Set(surface.rgba[3])
        if source is None:
            colour.Set(Gf.Vec3f(*linear(np.clip(surface.rgba[:3], 0.0, 1.0)).tolist()))  # as USD has them
        else:
            coordinates = UsdShade.Shader.Define(self._stage, f"{path}/coordinates")
            coordinates.CreateIdAttr("UsdPrimvarReader_float2")
            coordinates.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
            image = UsdShade.Shader.Define(self._stage, f"{path}/image")
            image.CreateIdAttr("UsdUVTexture")
            image.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath(source))
            for wrap in ("wrapS", "wrapT"):
                image.CreateInput(wrap, Sdf.ValueTypeNames.Token).Set("repeat")
            coordinates_out = coordinates.CreateOutput("result", Sdf.ValueTypeNames.Float2)
            image.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(coordinates_out)
            colour.ConnectToSource(image.CreateOutput("rgb", Sdf.ValueTypeNames.Float3))
        material.CreateSurfaceOutput().ConnectToSource(shader.CreateOutput("surface", Sdf.ValueTypeNames.Token))
        return material


def look_label(model: mujoco.MjModel, geom: int) -> str:
    """The semantic label, of type `look`, of what shines alike: a camera's segmentation tells them apart."""
    material = int(model.geom_matid[geom])
    return "matt" if material < 0 else prim_name(f"look_{model.mat(material).name}")


def geom_prim(model: mujoco.MjModel, geom: int) -> str:
    """A geom's name under its body."""
    return prim_name(model.geom(geom).name or f"geom_{geom - int(model.body_geomadr[model.geom_bodyid[geom]])}")


def _collides(model: mujoco.MjModel, geom: int) -> bool:
    return bool(model.geom_contype[geom] or model.geom_conaffinity[geom])


def _may_touch(model: mujoco.MjModel, first: int, second: int) -> bool:
    types, affinities = model.geom_contype, model.geom_conaffinity
    return bool(types[first] & affinities[second] or types[second] & affinities[first])


def _geom_type(model: mujoco.MjModel, geom: int) -> mujoco.mjtGeom:
    return mujoco.mjtGeom(int(model.geom_type[geom]))


def _collision_shape(stage, path: str, model: mujoco.MjModel, geom: int):  # type: ignore[no-untyped-def]
    """The USD shape that collides as the geom does; None if there is none."""
    size, kind = model.geom_size[geom].tolist(), _geom_type(model, geom)
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = UsdGeom.Mesh.Define(stage, path)
        _set_triangles(mesh, *mesh_of(model, geom))
        UsdPhysics.MeshCollisionAPI.Apply(mesh.GetPrim()).CreateApproximationAttr("none")  # MuJoCo makes the hull itself
        return mesh
    if kind == mujoco.mjtGeom.mjGEOM_BOX:
        cube = UsdGeom.Cube.Define(stage, path)
        cube.CreateSizeAttr(2.0)
        return cube
    if kind == mujoco.mjtGeom.mjGEOM_PLANE:
        plane = UsdGeom.Plane.Define(stage, path)
        plane.CreateAxisAttr("Z")
        return plane
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        sphere = UsdGeom.Sphere.Define(stage, path)
        sphere.CreateRadiusAttr(size[0])
        return sphere
    if kind in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
        round_shape = (UsdGeom.Cylinder if kind == mujoco.mjtGeom.mjGEOM_CYLINDER else UsdGeom.Capsule).Define(stage, path)
        round_shape.CreateAxisAttr("Z")
        round_shape.CreateRadiusAttr(size[0])
        round_shape.CreateHeightAttr(2.0 * size[1])
        return round_shape
    return None


def _collision_scale(model: mujoco.MjModel, geom: int) -> np.ndarray | None:
    return model.geom_size[geom] if _geom_type(model, geom) == mujoco.mjtGeom.mjGEOM_BOX else None


def _set_triangles(mesh, points: np.ndarray, faces: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(points, np.float32)))
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(faces), 3, np.int32)))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(np.ascontiguousarray(faces.ravel(), np.int32)))
    mesh.CreateSubdivisionSchemeAttr("none")


def _set_pose(prim, place: np.ndarray, turn: np.ndarray, scale: np.ndarray | None = None) -> None:  # type: ignore[no-untyped-def]
    prim.AddTranslateOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Vec3d(*np.asarray(place, float).tolist()))
    prim.AddOrientOp(UsdGeom.XformOp.PrecisionDouble).Set(_quaternion(turn, Gf.Quatd))
    if scale is not None:
        prim.AddScaleOp(UsdGeom.XformOp.PrecisionDouble).Set(Gf.Vec3d(*np.asarray(scale, float).tolist()))


def _set_mujoco(prim, schema: str, **values: float | int | Iterable[float]) -> None:  # type: ignore[no-untyped-def]
    """MuJoCo's numbers as `mjc:` attributes."""
    prim.AddAppliedSchema(schema)
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            prim.CreateAttribute(f"mjc:{name}", Sdf.ValueTypeNames.DoubleArray).Set(Vt.DoubleArray(value.tolist()))
        elif isinstance(value, int):
            prim.CreateAttribute(f"mjc:{name}", Sdf.ValueTypeNames.Int).Set(value)
        else:
            prim.CreateAttribute(f"mjc:{name}", Sdf.ValueTypeNames.Double).Set(float(value))  # type: ignore[arg-type]


def _set_label(prim, kind: str, label: str) -> None:  # type: ignore[no-untyped-def]
    """A semantic label, as cameras' segmentation reads it."""
    prim.AddAppliedSchema(f"SemanticsLabelsAPI:{kind}")
    prim.CreateAttribute(f"semantics:labels:{kind}", Sdf.ValueTypeNames.TokenArray).Set(Vt.TokenArray([label]))


def _quaternion(turn: np.ndarray, kind):  # type: ignore[no-untyped-def]
    w, x, y, z = (float(part) for part in turn)
    return kind(w, x, y, z)


def _pose_in_parent(model: mujoco.MjModel, body: int) -> tuple[np.ndarray, np.ndarray]:
    return model.body_pos[body].copy(), model.body_quat[body].copy()


def _turn_of_x_onto(axis: np.ndarray) -> np.ndarray:
    """(4,) w x y z: the shortest turn of the x axis onto another."""
    turn = np.array([1.0 + axis[0], 0.0, -axis[2], axis[1]])
    length = np.linalg.norm(turn)
    return np.array([0.0, 0.0, 0.0, 1.0]) if length < 1e-9 else turn / length
